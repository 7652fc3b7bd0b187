"""Batched decoding gives each question what it gets alone; contexts are compressed before they are asked about."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.quality.decoding import Job, Question, answer
from bench.quality.systems import cache_of, system
from leankv_sglang.offline.caches import Cache
from leankv_sglang.offline.lean_cache import LeanCache
from leankv_sglang.offline.packed import PackedModel
from tests.tiny_models import DEVICES, PAGE, tiny_packed, tokens


@pytest.fixture(scope="module", params=DEVICES)
def model(request: pytest.FixtureRequest) -> PackedModel:
    return tiny_packed(device=request.param)


JOBS = [
    Job(tokens(140, 1), [Question(tokens(9, 2), 12), Question(tokens(30, 3), 40)]),
    Job([], [Question(tokens(63, 4), 5)]),
    Job(tokens(128, 5), [Question(tokens(1, 6), 9)]),
    Job([], [Question(tokens(80, 7), 30), Question(tokens(20, 8), 30)]),
]


def _lags(model: PackedModel, name: str | None, ids: list[int], out: list[int]) -> list[float]:
    """By how much each token of an answer falls behind the likeliest one, all read in one prefill with no company."""
    cache = cache_of(model, system(name) if name else None, PAGE, 1, 1024)
    whole = ids + out[:-1]
    logits = model.logits(model.prefill(cache, [(cache.new(1024), whole)])[0][len(ids) - 1 :])
    chosen = logits.gather(1, torch.tensor(out, device=logits.device)[:, None])[:, 0]
    lags: list[float] = (logits.amax(1) - chosen).tolist()
    return lags


@pytest.mark.parametrize("name", [None, "balanced", "small"])
@pytest.mark.parametrize(("batch", "room"), [(16, 4096), (2, 700)])
def test_every_answer_is_that_of_the_question_alone(
    model: PackedModel, name: str | None, batch: int, room: int
) -> None:
    caches: list[Cache] = []

    def open_cache(rows: int, held: int) -> Cache:
        caches.append(cache_of(model, system(name) if name else None, PAGE, rows, held))
        return caches[-1]

    fed: list[int] = []
    done = {one.job: one for one in answer(model, open_cache, JOBS, batch, room, fed.append)}
    assert sorted(done) == [0, 1, 2, 3]
    written = sum(len(out) for one in done.values() for out in one.tokens)
    questions = sum(len(job.questions) for job in JOBS)
    assert sum(fed) == sum(len(j.context) + sum(len(q.ids) for q in j.questions) for j in JOBS) + written - questions
    for index, one in done.items():
        job = JOBS[index]
        assert (one.context_bytes > 0) == bool(job.context)
        for question, out in zip(job.questions, one.tokens, strict=True):
            assert len(out) == question.max_new
            # Random weights make near ties, where 16-bit matrix products of another shape may choose otherwise.
            assert max(_lags(model, name, job.context + question.ids, out)) < 0.1
    for cache in caches:
        if isinstance(cache, LeanCache):
            assert cache.store.usage().records == 0
            assert not cache.store.audit()


def test_a_stop_token_ends_an_answer_and_is_left_out(model: PackedModel) -> None:
    jobs = JOBS[1:2]
    (whole,) = answer(model, partial(cache_of, model, None, PAGE), jobs, 4, 1024)
    stop = whole.tokens[0][2]
    model.model.generation_config.eos_token_id = stop
    try:
        (cut,) = answer(model, partial(cache_of, model, None, PAGE), jobs, 4, 1024)
    finally:
        model.model.generation_config.eos_token_id = None
    assert cut.tokens[0] == whole.tokens[0][: whole.tokens[0].index(stop)]


def test_no_jobs_open_no_cache(model: PackedModel) -> None:
    def refuse(rows: int, held: int) -> Cache:
        raise AssertionError

    assert not list(answer(model, refuse, [], 4, 64))


def test_contexts_are_read_once(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions fork what is held; their own tokens are all that is added."""
    seen: list[int] = []
    extend = model.extend
    monkeypatch.setattr(
        model, "extend", lambda cache, batch: (seen.append(sum(len(ids) for _, ids in batch)), extend(cache, batch))[1]
    )
    job = Job(tokens(200, 9), [Question(tokens(4, i), 1) for i in range(3)])
    (done,) = answer(model, partial(cache_of, model, system("balanced"), PAGE), [job], 4, 4096)
    assert seen == [200, 12]
    assert all(len(out) == 1 for out in done.tokens)
    assert torch.tensor(done.tokens).shape == (3, 1)


def test_drawn_answers_are_their_seeds_and_nobody_elses(model: PackedModel) -> None:
    """The same with any company, another for another seed; a greedy question beside them stays greedy."""
    prompt = tokens(40, 3)
    open_cache = partial(cache_of, model, None, PAGE)

    def drawn(seeds: list[int | None], batch: int) -> list[list[int]]:
        jobs = [Job([], [Question(prompt, 6, seed)]) for seed in seeds]
        done = {one.job: one.tokens[0] for one in answer(model, open_cache, jobs, batch, 4096, temperature=2.0)}
        return [done[i] for i in range(len(seeds))]

    together = drawn([5, 6, None, 5], 4)
    assert together[0] == together[3]
    assert together[0] != together[1]
    assert together == drawn([5, 6, None, 5], 1)
    assert together[2] == drawn([None], 1)[0]
