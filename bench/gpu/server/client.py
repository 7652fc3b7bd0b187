"""Batches of requests as one, so that the client costs the same whatever the batch."""

from __future__ import annotations

import time
from typing import Any

from bench.common.server import Server


def ask(server: Server, prompts: list[list[int]], new_tokens: int, timeout: float = 300.0) -> tuple[float, int]:
    """Seconds that a batch of greedy requests took, and how many of its prompt tokens came from the cache."""
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    begin = time.perf_counter()
    answers = server.post("/generate", {"input_ids": prompts, "sampling_params": sampling}, timeout)
    seconds = time.perf_counter() - begin
    short = [a for a in answers if a["meta_info"]["completion_tokens"] != new_tokens]
    if short:
        raise RuntimeError(f"a request ended early: {short[0]['meta_info']['finish_reason']}")
    return seconds, sum(answer["meta_info"]["cached_tokens"] for answer in answers)


def talk(server: Server, question: str, new_tokens: int = 48) -> str:
    """A greedy answer of the chat route."""
    messages = [{"role": "user", "content": question}]
    body: dict[str, Any] = {"model": "default", "messages": messages, "temperature": 0, "max_tokens": new_tokens}
    answer = server.post("/v1/chat/completions", body, 120)
    return str(answer["choices"][0]["message"]["content"] or "")
