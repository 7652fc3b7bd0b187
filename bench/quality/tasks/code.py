"""HumanEval's answers of the exact cache, read again by every system: what short contexts of code lose."""

from __future__ import annotations

from bench.quality.answers import raw_answers
from bench.quality.harness import Bench, Limits, Row
from bench.quality.reread import reread
from bench.quality.tasks import humaneval

name = "code"


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system over the first problems, or all."""
    items = humaneval.items_of(bench, limits, seed)
    answers = raw_answers(bench, humaneval.name, items, limits)
    talks = []
    for item, texts in zip(items, answers, strict=True):
        for ask, tokens in zip(item.asks, texts, strict=True):
            if tokens:
                talks.append((ask.ids + tokens, [(len(ask.ids), len(ask.ids) + len(tokens))]))
    return reread(bench, name, talks)
