"""BABILong: facts about persons hidden in books, one question behind each context; qa1 one fact, qa2 two.

Prompts and the rule for a right answer are the benchmark's own: of the possible places, the answer names the right one
and no other.
"""

from __future__ import annotations

from bench.common.data import babilong
from bench.quality.answers import Ask, Item, run_answers
from bench.quality.harness import Bench, Limits, Row
from bench.quality.prompts import chat

name = "babilong"
SETS = ("qa1", "qa2")
LENGTHS = (2, 4)
ITEMS = 20
"""Of each set and length's hundred, unless limited otherwise."""
MAX_NEW = 20
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_INTRO = {
    "qa1": (
        "I will give you context with the facts about positions of different persons hidden in some random text and a "
        "question. You need to answer the question based only on the information from the facts. If a person was in "
        "different locations, use the latest location to answer the question.\n\n<example>\nCharlie went to the "
        "hallway. Judith come back to the kitchen. Charlie travelled to balcony. Where is Charlie?\nAnswer: The most "
        "recent location of Charlie is balcony.\n</example>\n\n<example>\nAlan moved to the garage. Charlie went to "
        "the beach. Alan went to the shop. Rouse travelled to balcony. Where is Alan?\nAnswer: The most recent "
        "location of Alan is shop.\n</example>\n\nAlways return your answer in the following format: The most recent "
        "location of 'person' is 'location'. Do not write anything else after that.\n\n"
    ),
    "qa2": (
        "I give you context with the facts about locations and actions of different persons hidden in some random text "
        "and a question. You need to answer the question based only on the information from the facts.\nIf a person "
        "got an item in the first location and travelled to the second location the item is also in the second "
        "location. If a person dropped an item in the first location and moved to the second location the item "
        "remains in the first location.\n\n<example>\nCharlie went to the kitchen. Charlie got a bottle. Charlie moved "
        "to the balcony. Where is the bottle?\nAnswer: The bottle is in the balcony.\n</example>\n\n<example>\nAlan "
        "moved to the garage. Alan got a screw driver. Alan moved to the kitchen. Where is the screw driver?\nAnswer: "
        "The screw driver is in the kitchen.\n</example>\n\nAlways return your answer in the following format: The "
        "'item' is in 'location'. Do not write anything else after that.\n\n"
    ),
}


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system, over all and for each set and length; nothing is drawn, so ``seed`` changes nothing."""
    sets = [(which, length) for length in LENGTHS if length * 1024 <= max(limits.lengths) for which in SETS]
    data = {one: babilong(*one) for one in sets}
    chosen = [(*one, row) for rows in zip(*data.values(), strict=True) for one, row in zip(sets, rows, strict=True)]
    count = ITEMS * len(sets) if limits.items is None else limits.items
    items = [_item(bench, *one) for one in chosen[:count]]
    return run_answers(bench, name, items, limits, score)


def score(ask: Ask, text: str) -> float:
    """Whether the answer names the right place and no other."""
    told = text.lower().split("\n")[0]
    return float({place for place in PLACES if place in told} == {ask.truth})


def _item(bench: Bench, which: str, length: int, row: dict[str, str]) -> Item:
    before = f"{_INTRO[which]}<context>\n{row['input'].strip()}\n</context>"
    context, question = chat(bench.tokenizer, before, f"\n\nQuestion: {row['question'].strip()}")
    return Item(f"{which} {length}k", context, [Ask(question, MAX_NEW, row["target"])])
