"""Prompts that a pool cannot hold together, asked over and over."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from bench.common.server import Server


def assert_hits_equal_misses(server: Server, prompts: list[list[int]], new_tokens: int) -> None:
    """Every answer, three at a time in random order, is that of an empty cache, and some are hits."""
    misses = []
    for prompt in prompts:
        server.flush()
        misses.append(server.generate(prompt, new_tokens))
    order = [i for seed in range(3) for i in random.Random(seed).sample(range(len(prompts)), len(prompts))]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda i: server.generate(prompts[i], new_tokens), order))
    for i, answer in zip(order, answers, strict=True):
        assert answer.tokens == misses[i].tokens
        assert answer.logprobs == misses[i].logprobs
    assert sum(answer.cached for answer in answers) > 0
