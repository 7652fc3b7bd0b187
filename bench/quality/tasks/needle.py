"""Needles in a haystack: two pass keys in running text, at five depths, each asked for after the context is compressed.

The answer is right when its first number is the key. The second lies about half the context away from
the first, whose depth it is.
"""

from __future__ import annotations

import random
import re

from bench.common.data import ruler_words
from bench.quality.answers import Ask, Item, run_answers
from bench.quality.harness import Bench, Limits, Row
from bench.quality.prompts import bury, ids_of

name = "needle"
DEPTHS = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_NEW = 16
RESERVE = 64
"""Tokens left for a question and its answer, so that both fit into the length."""
INTRO = "The following text hides pass keys. Remember them: you will be asked for them afterwards.\n"


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system, over all lengths and for each."""
    items = [
        _item(bench, length, depth, random.Random(f"{seed} {repeat} {length} {depth}"))
        for repeat in range(limits.repeats)
        for depth in DEPTHS
        for length in limits.lengths
    ]
    return run_answers(bench, name, items[: limits.items], limits, score)


def score(ask: Ask, text: str) -> float:
    """Whether the first number of the answer is the key."""
    found = re.search(r"\d+", text.replace(",", ""))
    return float(found is not None and found[0] == ask.truth)


def _item(bench: Bench, length: int, depth: float, rng: random.Random) -> Item:
    nouns = rng.sample(ruler_words("noun"), 2)
    keys = [str(rng.randrange(10000, 100000)) for _ in nouns]
    depths = [depth, depth + 0.45 if depth < 0.5 else depth - 0.45]
    sentences = [f"The pass key of the {noun} is {key}. Remember it." for noun, key in zip(nouns, keys, strict=True)]
    intro = ids_of(bench.tokenizer, INTRO)
    body = bury(bench, length - len(intro) - RESERVE, sorted(zip(depths, sentences, strict=True)), rng)
    asks = []
    for noun, key in zip(nouns, keys, strict=True):
        question = f"\n\nWhat is the pass key of the {noun}? The pass key of the {noun} is"
        asks.append(Ask(ids_of(bench.tokenizer, question), MAX_NEW, key))
    return Item(f"{length // 1024}k", intro + body, asks)
