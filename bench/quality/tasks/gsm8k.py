"""GSM8K, zero-shot in chat form, greedy: the last number of the answer is compared. For models that can do it."""

from __future__ import annotations

import re

from bench.common.data import gsm8k
from bench.quality.answers import Ask, Item, run_answers
from bench.quality.harness import Bench, Limits, Row
from bench.quality.prompts import chat

name = "gsm8k"
ITEMS = 200
MAX_NEW = 640
_ASK = "\n\nReason step by step, and end with: The answer is <number>."


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system over the first problems; nothing is drawn, so ``seed`` changes nothing."""
    items = []
    for question, truth in gsm8k()[: limits.items or ITEMS]:
        ids = chat(bench.tokenizer, "", question + _ASK)[1]
        items.append(Item("", [], [Ask(ids, MAX_NEW, truth)]))
    return run_answers(bench, name, items, limits, score)


def score(ask: Ask, text: str) -> float:
    """Whether the last number of the answer is the right one."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(bool(found) and float(found[-1].replace(",", "")) == float(ask.truth.replace(",", "")))
