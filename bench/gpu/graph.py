"""A decode step as a CUDA graph: captured once, replayed over other pages, lengths and queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random

import numpy as np
import torch
from torch import Tensor

import bench.common.checkout  # noqa: F401
from bench.gpu.correct import pages_of, plan_over
from bench.gpu.jobs import Bench, Job, drawn
from bench.gpu.shapes import Shape
from leankv_kernels import Ops, Plan, RawPages, RecordStore, StaticPlan

REPLAYS = 4
RESULTS = ("own out", "own lse", "past out", "past lse", "merged out", "merged lse", "column scores")


class Step:
    """A decode step over tensors that stay where they are."""

    def __init__(self, ops: Ops, shape: Shape, store: RecordStore, plan: Plan, q: Tensor, raw: RawPages) -> None:
        self.ops, self.shape, self.store, self.plan, self.q, self.raw = ops, shape, store, plan, q, raw

    def run(self) -> tuple[Tensor, ...]:
        """All that attention does; the column scores are among the results."""
        scale = self.shape.head_dim**-0.5
        own = self.ops.attend_open(self.q, self.raw, self.plan, scale)
        past = self.ops.attend_committed(self.q, self.store, 0, self.plan, scale, "hadamard")
        return (*own, *past, *self.ops.merge_states(*own, *past), self.raw.scores)

    def eager(self, plan: Plan) -> list[Tensor]:
        """What a plan of its own gives, on copies."""
        raw = self.raw._replace(scores=self.raw.scores.clone())
        results = Step(self.ops, self.shape, self.store, plan, self.q.clone(), raw).run()
        return [x.clone() for x in results]


def captured(step: Step, on_gpu: bool) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """What replays a step, and where its results come to lie. Without a GPU the step is called again, with all that the
    host knew when it was captured.
    """
    if not on_gpu:
        results = step.run()

        def again() -> None:
            for kept, new in zip(results, step.run(), strict=True):
                kept.copy_(new)

        return again, results
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step.run()  # loads the kernels
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step.run()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay, results


def _graph(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """Captured at the longest context, replayed at any; ``many`` requests, or few."""
    device = bench.device
    pages = max(1, rng.choice(bench.sizes.tokens) // shape.page)
    requests = rng.choice((8, 17)) if many else rng.choice((1, 2, 3))
    own = pages_of(shape, rng, pages, device)
    while not own.some(rng, pages):  # too many are cut to be read near
        own = pages_of(shape, rng, pages, device)
    heads, dim, page = shape.heads * shape.group, shape.head_dim, shape.page
    g = torch.Generator(device).manual_seed(rng.getrandbits(32))

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device).to(torch.bfloat16)

    def new_lists(longest: bool) -> list[list[int]]:
        return [own.some(rng, pages if longest else rng.randint(0, pages)) for _ in range(requests)]

    static = StaticPlan(requests, pages, page, own.near_pages, device)
    size = (requests, page, shape.heads, dim)
    scores = torch.zeros(requests, heads, page, dtype=torch.int32, device=device)
    step = Step(
        bench.ops,
        shape,
        own.store,
        static.plan(requests),
        randn(requests, heads, dim),
        RawPages(randn(*size), randn(*size), scores, torch.arange(requests, device=device)),
    )
    replay, results = captured(step, bench.on_gpu)
    for time in range(REPLAYS):
        # Now and then the last requests are padding.
        lists = new_lists(longest=time == 1)[: requests - (time == 2)]
        plan = plan_over(lists + [[]] * (requests - len(lists)), [1] * requests, shape, own.near_pages, device)
        step.q.copy_(randn(requests, heads, dim))
        step.raw.key.copy_(randn(*size))
        wanted = step.eager(plan)
        count = np.array([len(x) for x in lists])
        nothing = np.zeros(len(lists), np.int64)
        static.fill(nothing, count * page + 1, np.array([x for y in lists for x in y], np.int64), nothing)
        replay()
        for name, got, want in zip(RESULTS, results, wanted, strict=True):
            assert torch.equal(got, want), f"replay {time} of {requests} requests: another {name} than eager"


def graph_jobs(bench: Bench) -> Iterator[Job]:
    """Of every shape."""
    return drawn(bench, "graph", partial(_graph, bench))
