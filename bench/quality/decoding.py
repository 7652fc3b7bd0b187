"""Answers to questions about contexts, decoded in batches; a context is prefilled, and compressed, once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.quality.sampling import choose
from leankv_sglang.offline.caches import Cache, State
from leankv_sglang.offline.packed import PackedModel

READ_BY = 4
"""New jobs wait until this share of the batch is free: their weights are read once for several."""


class Question(NamedTuple):
    """What is asked behind a context, and how long the answer may be; drawn by a seed where there is one, else
    greedy.
    """

    ids: list[int]
    max_new: int
    seed: int | None = None

    @property
    def room(self) -> int:
        """Tokens it takes with its answer."""
        return len(self.ids) + self.max_new


class Job(NamedTuple):
    """A context, perhaps empty, and the questions about it, each asked as if it were the only one."""

    context: list[int]
    questions: list[Question]


class Answers(NamedTuple):
    """What a job gave."""

    job: int
    tokens: list[list[int]]  # per question, without the token that ended it
    context_bytes: int  # physical, see Cache.context_bytes


@dataclass
class _Open:
    """A job whose answers are being decoded."""

    job: int
    cost: int
    context_bytes: int = 0
    tokens: list[list[int]] = field(default_factory=list)
    left: int = 0


@dataclass(eq=False)
class _Running:
    """One answer being decoded."""

    owner: _Open
    out: list[int]
    state: State
    room: int
    seed: int | None
    token: int = -1


def answer(
    model: PackedModel,
    open_cache: Callable[[int, int], Cache[Any]],
    jobs: Sequence[Job],
    batch: int,
    tokens: int,
    progress: Callable[[int], object] = lambda count: None,
    temperature: float = 1.0,
) -> Iterator[Answers]:
    """Answer jobs, each as it would be answered alone; yields them as they are done.

    Args:
        model: the model.
        open_cache: makes a cache for so many sequences and tokens.
        jobs: in the order they are begun.
        batch: answers decoded together; a job with more questions is still taken whole.
        tokens: tokens held at a time; a job that takes more is still taken, alone.
        progress: told of every forward's new tokens, prompts included.
        temperature: of answers that are drawn.
    """
    if not jobs:
        return
    costs = [_cost(job) for job in jobs]
    batch = max(batch, *(len(job.questions) for job in jobs))
    tokens = max(tokens, *costs)
    cache = open_cache(batch, tokens + batch * 256)
    waiting, running, free = deque(range(len(jobs))), list[_Running](), tokens
    while waiting or running:
        taken: list[_Open] = []
        rows = batch - len(running)
        if not running or rows * READ_BY >= batch:
            while waiting and len(jobs[waiting[0]].questions) <= rows and costs[waiting[0]] <= free:
                index = waiting.popleft()
                rows, free = rows - len(jobs[index].questions), free - costs[index]
                taken.append(_Open(index, costs[index]))
        if taken:
            chosen, out = _start(model, cache, [(one, jobs[one.job]) for one in taken], progress)
            running += chosen
        else:
            chosen = list(running)
            out = model.extend(cache, [(one.state, [one.token]) for one in chosen])
            progress(len(chosen))
        logits, seeds, places = model.logits(out), [one.seed for one in chosen], [len(one.out) for one in chosen]
        for one, token in zip(chosen, choose(logits, seeds, places, temperature), strict=True):
            one.token = token
        for one in chosen:
            if _take(one, model.stop_ids):
                continue
            running.remove(one)
            cache.free(one.state)
            one.owner.left -= 1
            if not one.owner.left:
                free += one.owner.cost
                yield Answers(one.owner.job, one.owner.tokens, one.owner.context_bytes)


def _cost(job: Job) -> int:
    # Every question may hold a copy of the context, as the exact cache does.
    return sum(len(job.context) + one.room for one in job.questions)


def _start(
    model: PackedModel, cache: Cache[Any], jobs: Sequence[tuple[_Open, Job]], progress: Callable[[int], object]
) -> tuple[list[_Running], Tensor]:
    """Prefill contexts, then the questions behind them; returns with the answers the outputs of their last tokens."""
    states = []
    for _, job in jobs:
        capacity = len(job.context) + max(one.room for one in job.questions)
        states.append(cache.new(capacity))
    contexts = [(state, job.context) for state, (_, job) in zip(states, jobs, strict=True) if job.context]
    model.prefill(cache, contexts)
    progress(sum(len(ids) for _, ids in contexts))
    started: list[_Running] = []
    asked: list[tuple[State, list[int]]] = []
    for state, (owner, job) in zip(states, jobs, strict=True):
        owner.context_bytes = cache.context_bytes(state) if job.context else 0
        owner.left = len(job.questions)
        owner.tokens = [[] for _ in job.questions]
        # The context's own state goes to the last question, once the others have forked it.
        forks = [cache.fork(state, len(job.context) + one.room) for one in job.questions[:-1]]
        for mine, question, out in zip([*forks, state], job.questions, owner.tokens, strict=True):
            started.append(_Running(owner, out, mine, question.max_new, question.seed))
            asked.append((mine, question.ids))
    outs = model.prefill(cache, asked)
    progress(sum(len(ids) for _, ids in asked))
    return started, torch.stack([hidden[-1] for hidden in outs])


def _take(one: _Running, stop_ids: frozenset[int]) -> bool:
    """Add the token just chosen to its answer; whether the answer goes on."""
    if one.token in stop_ids:
        return False
    one.out.append(one.token)
    return len(one.out) < one.room
