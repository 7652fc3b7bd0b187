"""Are answers sensible, and does a hit give what a miss gives?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.common.server import Completion, Server
from bench.gpu.server.client import talk
from bench.hit_miss import Comparison

QUESTIONS = (
    ("What is the capital of France?", "paris"),
    ("Which planet do humans live on?", "earth"),
    ("Write a Python function that adds two numbers.", "def "),
)


def sensible(server: Server) -> dict[str, Any]:
    """Questions, answers, and in how many of them the word is that a sensible one has."""
    said = [talk(server, question) for question, _ in QUESTIONS]
    right = [word in answer.lower() for answer, (_, word) in zip(said, QUESTIONS, strict=True)]
    rows = [{"question": q, "answer": a, "right": r} for (q, _), a, r in zip(QUESTIONS, said, right, strict=True)]
    return {"right": sum(right), "of": len(right), "answers": rows}


def hit_and_miss(
    server: Server, prompts: list[list[int]], new_tokens: int, in_time: Callable[[], bool] = lambda: True
) -> list[dict[str, Any]]:
    """Each prompt's miss beside its hit, alone; then all of them in one batch, missing and hitting, beside the misses
    alone. ``in_time`` says whether to go on.
    """
    alone, batch_miss, batch_hit = Comparison(), Comparison(), Comparison()
    misses: list[Completion] = []
    for prompt in prompts:
        if not in_time():
            break
        server.flush()
        misses.append(server.generate(prompt, new_tokens, top2=True))
        alone.add(misses[-1], server.generate(prompt, new_tokens))
    if misses and in_time():
        server.flush()
        with ThreadPoolExecutor(len(misses)) as pool:
            for result in (batch_miss, batch_hit):
                answers = pool.map(lambda p: server.generate(p, new_tokens), prompts[: len(misses)])
                for miss, answer in zip(misses, answers, strict=True):
                    result.add(miss, answer)
    named = {"hit alone": alone, "miss in a batch": batch_miss, "hit in a batch": batch_hit}
    rows = [result.row("", what) for what, result in named.items() if result.count]
    return [{key: value for key, value in row.items() if key != "system"} for row in rows]
