"""What every test of hits against misses compares: tokens, log-probabilities, and what the request's pages cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.common.server import Completion, Server

PAGE = 128


def assert_same(answer: Completion, other: Completion) -> None:
    """Two answers are equal to the bit."""
    assert answer.tokens == other.tokens
    assert answer.logprobs == other.logprobs


def a_miss_equal_to_its_hit(
    server: Server, prompt: list[int], new_tokens: int, accuracy: Any = None, again: Any = None
) -> Completion:
    """Ask on an empty cache, then again, when every full page before the last token is there.

    Args:
        server: has nothing else to do.
        prompt: token ids.
        new_tokens: of the answer.
        accuracy: the request field ``leankv``.
        again: the same accuracy by another name, for the second time.
    """
    server.flush()
    fields = [{"leankv": field} if field is not None else {} for field in (accuracy, again or accuracy)]
    miss, hit = (server.generate(prompt, new_tokens, fields=one) for one in fields)
    assert (miss.cached, hit.cached) == (0, (len(prompt) - 1) // PAGE * PAGE)
    assert_same(hit, miss)
    assert hit.kv == miss.kv
    return miss


def misses(server: Server, prompts: Sequence[list[int]], new_tokens: int) -> list[Completion]:
    """Each prompt's answer alone, on an empty cache."""
    answers = []
    for prompt in prompts:
        server.flush()
        answers.append(server.generate(prompt, new_tokens))
    return answers


def asked_after_a_probe(server: Server, prompt: list[int], new_tokens: int, **fields: Any) -> Completion:
    """An answer, of which the probe said before how much would come from the cache, and from where."""
    found = server.post("/leankv/probe", {"input_ids": prompt, **fields})
    answer = server.generate(prompt, new_tokens, fields=fields)
    assert found["hit_tokens"] == answer.cached
    assert sum(found["hit_from"].values()) == answer.cached
    return answer


def assert_hits_equal_misses(server: Server, prompts: list[list[int]], new_tokens: int) -> None:
    """Every answer, three at a time in random order, is that of an empty cache, and some are hits."""
    alone = misses(server, prompts, new_tokens)
    order = [i for seed in range(3) for i in random.Random(seed).sample(range(len(prompts)), len(prompts))]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda i: server.generate(prompts[i], new_tokens), order))
    for i, answer in zip(order, answers, strict=True):
        assert_same(answer, alone[i])
    assert sum(answer.cached for answer in answers) > 0
