"""RULER's kinds of retrieval in one context: many keys, a key of many values, and chains of variables.

Four questions about each context, asked after it is compressed: two keys among six, all four values of one key (the
long answer), and all variables of a chain. A list scores the share of it that the answer names, as RULER counts.
"""

from __future__ import annotations

import random
import string

from bench.common.data import ruler_words
from bench.quality.answers import Ask, Item, run_answers
from bench.quality.harness import Bench, Limits, Row
from bench.quality.prompts import bury, ids_of

name = "ruler"
KEYS, VALUES, CHAINS, HOPS = 6, 4, 2, 4
RESERVE = 192
PER_LENGTH = 10
INTRO = (
    "Some special magic numbers and some variable assignments are hidden within the following text. Make sure to "
    "memorize them. I will quiz you about them afterwards.\n"
)


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system, over all, for each length and for each kind of question."""
    items = [
        _item(bench, length, random.Random(f"{seed} {i} {length}"))
        for i in range(PER_LENGTH * limits.repeats)
        for length in limits.lengths
    ]
    return run_answers(bench, name, items[: limits.items], limits, score)


def score(ask: Ask, text: str) -> float:
    """The share of the wanted strings that the answer holds."""
    return sum(wanted in text for wanted in ask.truth) / len(ask.truth)


def _item(bench: Bench, length: int, rng: random.Random) -> Item:
    keys = [
        f"{adjective}-{noun}"
        for adjective, noun in zip(
            rng.sample(ruler_words("adjective"), KEYS + 1), rng.sample(ruler_words("noun"), KEYS + 1), strict=True
        )
    ]
    numbers = [str(n) for n in rng.sample(range(1000000, 10000000), KEYS + VALUES)]
    pairs = [*zip(keys, numbers, strict=False)][:KEYS] + [(keys[KEYS], value) for value in numbers[KEYS:]]
    needles = [(rng.random(), f"One of the special magic numbers for {key} is: {value}.") for key, value in pairs]
    chains = []
    for _ in range(CHAINS):
        value = str(rng.randrange(10000, 100000))
        names = ["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(HOPS)]
        sources = [value, *(f"VAR {one}" for one in names)]
        places = sorted(rng.random() for _ in names)
        steps = zip(places, names, sources, strict=False)
        needles += [(place, f"VAR {to} = {source}.") for place, to, source in steps]
        chains.append((value, names))
    tokenizer = bench.tokenizer
    intro = ids_of(tokenizer, INTRO)
    body = bury(bench, length - len(intro) - RESERVE, sorted(needles), rng)
    asks = [_one_key(key, [value]) for key, value in rng.sample(pairs[:KEYS], 2)]
    asks += [_all_values(keys[KEYS], numbers[KEYS:]), _chain(*chains[0])]
    ready = [Ask(ids_of(tokenizer, text), room, truth, kind) for text, room, truth, kind in asks]
    return Item(f"{length // 1024}k", intro + body, ready)


_Asked = tuple[str, int, list[str], str]


def _one_key(key: str, values: list[str]) -> _Asked:
    text = f"\nWhat is the special magic number for {key} mentioned in the provided text?"
    return f"{text} The special magic number for {key} mentioned in the provided text is", 24, values, "key"


def _all_values(key: str, values: list[str]) -> _Asked:
    text = f"\nWhat are all the special magic numbers for {key} mentioned in the provided text?"
    return f"{text} The special magic numbers for {key} mentioned in the provided text are", 96, values, "values"


def _chain(value: str, names: list[str]) -> _Asked:
    text = f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to"
    text += f" the chain of variable assignment in the text above, {HOPS} variables are assigned the value {value},"
    return f"{text} they are:", 64, names, "chain"
