"""The same bits whatever the batch, the chunks and the time of day."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

import torch

import bench.common.checkout  # noqa: F401
from bench.gpu.correct import ROTATIONS, pages_of, plan_over, queries
from bench.gpu.jobs import Bench, Job, drawn
from bench.gpu.shapes import Shape
from tests.kernels.cases import ALPHAS, MODEL_DTYPES, Case, random_splits
from tests.kernels.driver import Method


def _reader(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """A request alone, again and again, and among strangers."""
    sizes, device = bench.sizes, bench.device
    pages = max(1, rng.choice(sizes.tokens) // shape.page)
    own = pages_of(shape, rng, pages, device)
    lists = [own.some(rng, n) for n in (pages, *(rng.randint(0, pages) for _ in range(sizes.requests - 1)))]
    most = min(sizes.queries, shape.page) if many else 1
    counts = [rng.randint(min(2, most), most) for _ in lists]
    q, rotation = queries(rng, sum(counts), shape, device), rng.choice(ROTATIONS)

    def attend(first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        plan = plan_over(lists[first:last], counts[first:last], shape, own.near_pages, device)
        some = q[sum(counts[:first]) : sum(counts[:last])]
        return bench.ops.attend_committed(some, own.store, 0, plan, shape.head_dim**-0.5, rotation)

    together = attend(0, len(lists))
    for time in range(sizes.repeats):
        again = attend(0, len(lists))
        assert all(map(torch.equal, again, together)), f"other bits at the same call, time {time}"
    for request in range(len(lists)):
        alone = attend(request, request + 1)
        rows = slice(sum(counts[:request]), sum(counts[: request + 1]))
        assert all(torch.equal(x[rows], y) for x, y in zip(together, alone, strict=True)), (
            f"request {request} of {len(lists[request])} pages gets other bits alone than among {len(lists) - 1} others"
        )
    # A single query of a tile of several is prefill as decode does it.
    if many:
        plan = plan_over(lists[:1], [1], shape, own.near_pages, device)
        one = bench.ops.attend_committed(q[:1], own.store, 0, plan, shape.head_dim**-0.5, rotation)
        assert all(torch.equal(x[:1], y) for x, y in zip(together, one, strict=True)), "decode differs from prefill"


def _sequence(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """Whole sequences through every op: in chunks, token by token and in company against alone and at once."""
    page = shape.page
    method = Method(shape.layout(), rng.randint(1, 2) if shape.near else 0, rng.choice(ROTATIONS), *rng.choice(ALPHAS))
    case = Case(method, shape.group, rng.choice(MODEL_DTYPES), bench.device)
    longest = page * rng.randint(2, 10 if many else 3) if bench.on_gpu else page
    lengths = [longest + rng.randint(1, 9), rng.randint(1, page), page + 1][: 3 if bench.on_gpu else 2]
    driver = case.driver(bench.ops)
    requests = [driver.admit(case.tokens(n, rng.getrandbits(32)), row) for row, n in enumerate(lengths)]
    while running := [r for r in requests if r.done < len(r.tokens)]:
        chosen = rng.sample(running, rng.randint(1, len(running)))
        driver.step([(r, random_splits(rng, len(r.tokens) - r.done)[0]) for r in chosen])
    for request in requests:
        at_once, alone = case.alone(bench.ops, request.tokens)
        what = f"{len(request.tokens)} tokens in chunks and company"
        assert torch.equal(request.output(), alone.output()), f"{what}: other outputs than at once and alone"
        assert torch.equal(driver.records(request), at_once.records(alone)), f"{what}: other records"
    assert driver.store.audit() == []


def stable_jobs(bench: Bench) -> Iterator[Job]:
    """Readers and whole sequences by turns."""
    for pair in zip(
        drawn(bench, "reader", partial(_reader, bench)),
        drawn(bench, "whole", partial(_sequence, bench)),
        strict=True,
    ):
        yield from pair
