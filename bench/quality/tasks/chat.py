"""Two-turn chat (MT-bench): the exact cache's greedy answers of both turns, read again by every system.

A conversation is one sequence, read as a server would that has the first turn in its cache.
"""

from __future__ import annotations

from bench.common.data import mt_bench
from bench.quality.answers import Ask, Item, raw_answers
from bench.quality.harness import Bench, Limits, Row
from bench.quality.prompts import chat, next_turn
from bench.quality.reread import Talk, reread

name = "chat"
ITEMS = 24
MAX_NEW = 256


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system; questions are spread over the categories, so ``seed`` changes nothing."""
    questions = mt_bench()
    count = min(limits.items or ITEMS, len(questions))
    turns = [questions[i * len(questions) // count] for i in range(count)]
    return reread(bench, name, _talks(bench, turns, limits))


def _talks(bench: Bench, turns: list[list[str]], limits: Limits) -> list[Talk]:
    """Conversations with the exact cache's answers: tokens, and where the two answers lie."""
    prompts = [chat(bench.tokenizer, "", first)[1] for first, *_ in turns]
    firsts = raw_answers(bench, name, [Item("", [], [Ask(ids, MAX_NEW, None)]) for ids in prompts], limits)
    contexts = [prompt + one for prompt, (one,) in zip(prompts, firsts, strict=True)]
    links = [next_turn(bench.tokenizer, first, second) for first, second, *_ in turns]
    asked = [Item("", context, [Ask(link, MAX_NEW, None)]) for context, link in zip(contexts, links, strict=True)]
    seconds = raw_answers(bench, name, asked, limits)
    talks = []
    for prompt, context, link, (last,) in zip(prompts, contexts, links, seconds, strict=True):
        behind = len(context) + len(link)
        if behind > len(prompt) + len(link) or last:
            talks.append((context + link + last, [(len(prompt), len(context)), (behind, behind + len(last))]))
    return talks
