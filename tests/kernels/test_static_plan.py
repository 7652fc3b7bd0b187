"""The plan of a captured graph says what a plan made for the step says."""

from __future__ import annotations

from random import Random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given

from leankv_kernels import Plan, StaticPlan, build_plan, get_ops
from leankv_kernels.cuda import work
from tests.kernels.cases import Case, store_with
from tests.kernels.draws import random_tier_maps, small_layout
from tests.kernels.driver import Method
from tests.kernels.kernelutil import dice, few

PAGE, MOST_PAGES, MOST_REQUESTS = 64, 20, 9


class Step:
    """Requests at random rows, lengths and pages; some at the edges of a page."""

    def __init__(self, rng: Random, near_pages: int) -> None:
        count = rng.randint(1, MOST_REQUESTS)
        self.rows = np.array(rng.sample(range(1, 20), count))
        self.lengths = np.array(
            [rng.randint(0, MOST_PAGES) * PAGE + rng.choice((1, PAGE, rng.randint(1, PAGE))) for _ in range(count)]
        )
        self.table = np.zeros((20, MOST_PAGES + 1), np.int64)
        self.table[self.rows] = [[rng.randint(1, 8) for _ in range(MOST_PAGES + 1)] for _ in range(count)]
        slots = torch.from_numpy(self.table[:, :, None] * PAGE + np.arange(PAGE)).flatten(1).int()
        lengths = (self.lengths - 1).tolist()
        self.plan = build_plan(
            torch.from_numpy(self.rows), lengths, [1] * count, slots, PAGE, near_pages, cascade=False
        )

    def fill(self, static: StaticPlan) -> None:
        before = (self.lengths - 1) // PAGE
        pages = np.concatenate([self.table[row, :n] for row, n in zip(self.rows, before, strict=True)])
        static.fill(self.rows, self.lengths, pages, self.table[self.rows, before])


def check(plan: Plan, wanted: Plan) -> None:
    """Of the requests that there are the same, of padding nothing."""
    n = wanted.num_tiles
    for name in ("rows", "own_pages", "token_tile", "token_pos", "token_rank"):
        assert torch.equal(getattr(plan, name)[:n], getattr(wanted, name)), name
    assert torch.equal(plan.tiles[:n, :4], wanted.tiles[:, :4])
    for ours, theirs in zip(plan.tiles[:n].tolist(), wanted.tiles.tolist(), strict=True):
        assert torch.equal(plan.pages[ours[4] :][: ours[3]], wanted.pages[theirs[4] :][: theirs[3]])
    assert not plan.rows[n:].any()
    assert not plan.own_pages[n:].any()
    assert plan.tiles[n:].tolist() == [[i, 0, 1, 0, 0] for i in range(n, plan.num_tiles)]
    assert plan.full.numel() == 0


def check_filled(static: StaticPlan, wanted: Plan) -> None:
    """What is committed after a step."""
    expected = (wanted.own_pages[wanted.full], wanted.rows[wanted.full], wanted.full_index)
    for ours, theirs in zip(static.full(len(wanted.full)), expected, strict=True):
        assert torch.equal(ours, theirs)


@few(200)
@given(rng=dice)
def test_steps_one_after_another(rng: Random) -> None:
    near_pages = rng.randint(0, 3)
    static = StaticPlan(MOST_REQUESTS, MOST_PAGES, PAGE, near_pages, "cpu")
    for _ in range(3):
        step = Step(rng, near_pages)
        plan = static.plan(rng.randint(len(step.rows), MOST_REQUESTS))
        step.fill(static)
        check(plan, step.plan)
        check_filled(static, step.plan)
        assert static.plan(plan.num_tiles) is plan


def test_what_has_no_room_is_refused() -> None:
    static = StaticPlan(2, 3, PAGE, 1, "cpu")
    one = np.ones(3, np.int64)
    with pytest.raises(ValueError, match="room for 2 requests of 3 pages, not for 3 of 0"):
        static.fill(one, one, one[:0], one)
    with pytest.raises(ValueError, match="not for 1 of 4"):
        static.fill(one[:1], np.array([4 * PAGE + 1]), np.ones(4, np.int64), one[:1])


@few(8)
@given(rng=dice)
def test_a_replay_gives_the_bits_of_a_step_of_its_own(rng: Random) -> None:
    """What is launched depends on bounds alone: the same launches, over other lengths, requests and padding; whether
    states pass through memory or there would be too many."""
    layout = small_layout("k8v4,k4v2", page_size=PAGE, num_kv_heads=2, head_dim=64)
    case, cuda = Case(Method(layout, 1), 3, torch.bfloat16), get_ops("cpu", "cuda-emulated")
    store = store_with(case, random_tier_maps(rng, layout, 8), calm=True)
    static = StaticPlan(MOST_REQUESTS, MOST_PAGES, PAGE, 1, "cpu")
    for _ in range(2):
        step = Step(rng, 1)
        step.fill(static)
        q = case.tokens(MOST_REQUESTS, rng.getrandbits(32)).q
        n = len(step.rows)
        wanted = cuda.attend_committed(q[:n], store, 0, step.plan, 0.1, "hadamard")
        plan = static.plan(MOST_REQUESTS)
        plan.memo.clear()
        with mock.patch.object(work, "MOST_PART_BYTES", rng.choice((0, work.MOST_PART_BYTES))):
            out, lse = cuda.attend_committed(q, store, 0, plan, 0.1, "hadamard")
        assert torch.equal(out[:n], wanted[0])
        assert torch.equal(lse[:n], wanted[1])
        assert not out[n:].any()
