"""Attention sinks: one more term of the merge's sum."""

from __future__ import annotations

from random import Random

import torch
from hypothesis import given

from leankv_kernels import Ops
from tests.kernels.draws import generator
from tests.kernels.kernelutil import dice, few
from tests.kernels.test_attention import MINUS_INF
from tests.kernels.test_merge import nothing, partial


@few(20)
@given(rng=dice)
def test_a_sink_is_a_key_without_a_value(ops: Ops, rng: Random) -> None:
    """The same as merging with a state of zeros whose LSE is the sink; infinitely low ones are none."""
    a, b = partial(rng.getrandbits(32)), partial(rng.getrandbits(32))
    a = a if rng.random() < 0.7 else nothing(a)
    sinks = torch.randn(3, generator=generator(rng.getrandbits(32)), dtype=torch.float64) * 20
    got = ops.merge_states(*a, *b, sinks=sinks)
    want = ops.merge_states(*ops.merge_states(*a, *b), torch.zeros_like(b[0]), sinks.expand(5, 3))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)
    low = ops.merge_states(*a, *b, sinks=torch.full((3,), MINUS_INF))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(low, ops.merge_states(*a, *b), strict=True))


def test_a_sink_over_nothing_is_the_lse_of_zeros(ops: Ops) -> None:
    empty, sinks = nothing(partial(0)), torch.tensor([1.0, -30.0, MINUS_INF])
    out, lse = ops.merge_states(*empty, *empty, sinks=sinks)
    assert not out.any()
    assert torch.equal(lse, sinks.double().expand(5, 3))
