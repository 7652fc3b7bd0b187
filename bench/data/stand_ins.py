"""Stand-ins for data that cannot be reached: every bench runs on them, and no figure of docs/ is made of them."""

from __future__ import annotations

import json
import random
from typing import Any

from bench.data.articles import text_of

CHARACTERS = 1_290_000
"""Of the text, as many as WikiText-2's test split has."""
QUESTIONS = 80
REQUESTS = 4000
HOUR = 3_600_000
BLOCK = 512
"""Tokens that a hash of Mooncake's trace stands for."""
_ANSWERED = 350
"""Tokens of an answer, in the middle."""


def text(dump: bytes) -> bytes:
    """Articles in plain text, as long as WikiText-2's test split, of a Wikipedia dump (bz2 of XML)."""
    return text_of(dump, CHARACTERS).encode()


def questions(text: str) -> bytes:
    """Questions of two turns in MT-bench's format: a passage to summarize, then to put into one sentence.

    Raises:
        ValueError: the text has no passages.
    """
    passages = [line for line in text.split("\n") if 400 <= len(line) <= 1500]
    if not passages:
        raise ValueError("the text has no passages of 400 to 1,500 characters")
    rows = []
    for i in range(QUESTIONS):
        passage = passages[i * len(passages) // QUESTIONS]
        turns = [f"Summarize this passage in three sentences.\n\n{passage}", "Now say it in one sentence."]
        rows.append({"question_id": i + 1, "category": "summary", "turns": turns})
    return _lines(rows)


def trace(seed: int = 0) -> bytes:
    """An hour of conversations in the format of Mooncake's traces.

    All share the first block, a system prompt. Each turn of a conversation begins with what was said before, so its
    whole blocks keep their hashes; lengths and turns are spread about as in the real trace.
    """
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    fresh = 0
    while len(rows) < REQUESTS:
        moment, length = rng.uniform(0, HOUR), BLOCK + round(rng.lognormvariate(8.4, 1.0))
        known: list[int] = [0]
        while moment < HOUR:
            blocks = -(-length // BLOCK)
            names = known + list(range(fresh + 1, fresh + 1 + blocks - len(known)))
            fresh += blocks - len(known)
            answer = max(round(rng.gauss(_ANSWERED, 150)), 1)
            rows.append(
                {"timestamp": round(moment), "input_length": length, "output_length": answer, "hash_ids": names}
            )
            if rng.random() < 0.6:
                break
            known = names[: length // BLOCK]
            length += answer + round(rng.lognormvariate(5.0, 1.0))
            moment += rng.expovariate(1 / 90_000)
    rows = sorted(rows, key=lambda row: row["timestamp"])[:REQUESTS]
    return _lines(rows)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
