"""Loads for the serving bench: prompts as token ids, with what they share."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from bench.common.data import default_tokens, mooncake_trace


class Job(NamedTuple):
    """One request."""

    prompt: list[int]
    new_tokens: int


def shared_prefix(
    groups: int,
    per_group: int,
    system: int,
    question: int,
    output: int,
    seed: int = 0,
    ids: list[int] | None = None,
) -> list[Job]:
    """The shape of SGLang's ``generated-shared-prefix`` dataset: a system prompt for each group, a question for each
    request, shuffled. Real text instead of random tokens, since what is important in a page depends on it: ``ids``,
    by default WikiText's for the default model.
    """
    rng = random.Random(seed)
    ids = default_tokens() if ids is None else ids

    def passage(length: int) -> list[int]:
        start = rng.randrange(len(ids) - length)
        return ids[start : start + length]

    jobs = []
    for _ in range(groups):
        prefix = passage(system)
        jobs += [Job(prefix + passage(question), output) for _ in range(per_group)]
    rng.shuffle(jobs)
    return jobs


def conversations(count: int, shrink: int, longest: int, output: int, seed: int = 0) -> list[Job]:
    """Requests of a real hour of conversations (Mooncake's trace): some of its conversations, whole and in its order.

    Args:
        count: requests, about.
        shrink: lengths are divided by this: a block of 512 tokens, the trace's unit of sharing, becomes one of
            ``512 / shrink``.
        longest: requests with more prompt tokens than this, once shrunk, are left out.
        output: most new tokens of a request.
        seed: of the choice of conversations; what they share within is the trace's.
    """
    ids, block = default_tokens(), 512 // shrink
    talks: dict[Any, list[dict[str, Any]]] = {}
    for entry in mooncake_trace():
        if block < entry["input_length"] // shrink <= longest:
            # The first block is a system prompt that all share; the second tells conversations apart.
            talks.setdefault(tuple(entry["hash_ids"][1:2]), []).append(entry)
    chosen: list[dict[str, Any]] = []
    for talk in random.Random(seed).sample(list(talks.values()), len(talks)):
        if len(chosen) >= count:
            break
        chosen += talk
    jobs = []
    for entry in sorted(chosen, key=lambda e: e["timestamp"]):
        starts = [(name + 1) * 7919 % (len(ids) - block) for name in entry["hash_ids"]]
        prompt = [token for start in starts for token in ids[start : start + block]]
        new_tokens = max(min(entry["output_length"] // shrink, output), 1)
        jobs.append(Job(prompt[: entry["input_length"] // shrink], new_tokens))
    return jobs


def unique(tokens: int, length: int, seed: int = 0) -> list[Job]:
    """Prompts that share nothing, of ``tokens`` tokens in all."""
    rng, ids = random.Random(seed), default_tokens()
    starts = rng.sample(range(len(ids) - length), tokens // length)
    return [Job(ids[start : start + length], 1) for start in starts]
