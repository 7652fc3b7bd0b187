"""Merging partial attentions."""

from __future__ import annotations

from random import Random

import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import Ops
from tests.kernels.draws import generator
from tests.kernels.kernelutil import dice, few
from tests.kernels.test_attention import MINUS_INF, assert_empty


def partial(seed: int, tokens: int = 5, heads: int = 3) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    out = torch.randn(tokens, heads, 16, generator=g, dtype=torch.float64)
    return out, torch.randn(tokens, heads, generator=g, dtype=torch.float64) * 20


def nothing(like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(like[0]), torch.full_like(like[1], MINUS_INF)


def test_merging_with_nothing_changes_no_bit(ops: Ops) -> None:
    state = partial(0)
    for merged in (ops.merge_states(*state, *nothing(state)), ops.merge_states(*nothing(state), *state)):
        assert torch.equal(merged[0], state[0])
        torch.testing.assert_close(merged[1], state[1], atol=1e-12, rtol=0)


def test_merging_nothing_with_nothing_is_nothing(ops: Ops) -> None:
    empty = nothing(partial(0))
    assert_empty(*ops.merge_states(*empty, *empty))


@few(30)
@given(rng=dice)
def test_merging_is_associative_and_commutative(ops: Ops, rng: Random) -> None:
    """Any of the three may be empty."""
    states = [partial(rng.getrandbits(32)) for _ in range(3)]
    a, b, c = (state if rng.random() < 0.7 else nothing(state) for state in states)
    left = ops.merge_states(*ops.merge_states(*a, *b), *c)
    right = ops.merge_states(*a, *ops.merge_states(*b, *c))
    swapped = ops.merge_states(*c, *ops.merge_states(*b, *a))
    for other in (right, swapped):
        for mine, theirs in zip(left, other, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


@few(20)
@given(rng=dice)
def test_merging_equals_one_softmax_over_the_union(ops: Ops, rng: Random) -> None:
    g, first = generator(rng.getrandbits(32)), rng.randint(1, 9)
    scores = torch.randn(2, 3, 10, generator=g, dtype=torch.float64) * 10 ** rng.uniform(-3, 3)
    values = torch.randn(10, 16, generator=g, dtype=torch.float64)

    def attention(part: slice) -> tuple[Tensor, Tensor]:
        return scores[..., part].softmax(-1) @ values[part], scores[..., part].logsumexp(-1)

    merged = ops.merge_states(*attention(slice(0, first)), *attention(slice(first, 10)))
    for got, want in zip(merged, attention(slice(0, 10)), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
