"""A draw from probabilities that a row's seed and position decide: the arithmetic of ``seeded_sampling``.

SGLang has such a draw for ``--enable-deterministic-inference`` alone. On CPU its hash lies in a package that has no CPU
build, min-p stops the server, and it counts noise by a token's rank where anybody in the batch asks for top-p, by the
token otherwise, so that a neighbour's wish changes a row's text. Here noise belongs to the token, filters that a row
did not ask for leave it as it is, and every sum is exact: a row comes out the same in any company.
"""

from __future__ import annotations

import torch
from torch import Tensor

_UNIT = 2.0**40
"""Probabilities are added up as integers of this many to one: the same sum in any order, on any device."""


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _shifted(x: Tensor, by: int) -> Tensor:
    """Right, with zeros from the left, which int32 has no operator for."""
    return (x >> by).bitwise_and_((1 << (32 - by)) - 1)


def _rotate(x: Tensor, by: int) -> Tensor:
    low = _shifted(x, 32 - by)
    return x.bitwise_left_shift_(by).bitwise_or_(low)


def _scrambled(word: Tensor) -> Tensor:
    return _rotate(word * _signed(0xCC9E2D51), 15).mul_(0x1B873593)


def _mixed(state: Tensor, scrambled: Tensor) -> Tensor:
    return _rotate(state ^ scrambled, 13).mul_(5).add_(_signed(0xE6546B64))


def hashes(seeds: Tensor, positions: Tensor, columns: int) -> Tensor:
    """MurmurHash3 (32 bits) of seed, position and column, as SGLang takes it. Works in place where there are many.

    Args:
        seeds: int64 ``[rows]``.
        positions: integers ``[rows]``.
        columns: how many.

    Returns:
        int32 ``[rows, columns]``.
    """
    words = seeds.clone(memory_format=torch.contiguous_format).view(torch.int32)
    low, high = words.view(-1, 2).unbind(1)
    state = torch.zeros_like(low)
    for word in (low, high, positions.int()):
        state = _mixed(state, _scrambled(word))
    column = torch.arange(columns, dtype=torch.int32, device=seeds.device)
    state = _mixed(state[:, None], _scrambled(column)).bitwise_xor_(16)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state.bitwise_xor_(_shifted(state, shift)).mul_(_signed(factor))
    return state.bitwise_xor_(_shifted(state, 16))


def allowed(probs: Tensor, top_ks: Tensor, top_ps: Tensor, min_ps: Tensor) -> Tensor:
    """Whether each token passes its row's filters, bool ``[rows, tokens]``; of equals the earlier ranks higher."""
    ordered, tokens = probs.sort(dim=-1, descending=True, stable=True)
    mass = (ordered.double() * _UNIT).long()
    before = mass.cumsum(-1) - mass
    # Probabilities may add up to a little over one: 1 does not filter.
    limit = torch.where(top_ps < 1, (top_ps.double() * _UNIT).long(), 2 * int(_UNIT))
    passes = before <= limit[:, None]
    passes &= torch.arange(probs.shape[-1], device=probs.device) < top_ks[:, None]
    passes &= ordered >= ordered[:, :1] * min_ps[:, None]
    return torch.zeros_like(passes).scatter_(-1, tokens, passes)


def draw(probs: Tensor, seeds: Tensor, positions: Tensor, passes: Tensor | None = None) -> Tensor:
    """One token a row, by its probabilities; int32 ``[rows]``.

    Args:
        probs: ``[rows, tokens]``, not negative; need not add up to one.
        seeds: int64 ``[rows]``.
        positions: of the rows in their sequences.
        passes: tokens that may be drawn, where not all of them.
    """
    uniform = hashes(seeds, positions, probs.shape[-1]).double().add_(2**31 + 0.5).mul_(2.0**-32)
    # Exponential clocks whose rates are the probabilities: each rings first with its probability.
    rates = torch.div(probs, uniform.log_().neg_(), out=uniform)
    if passes is not None:
        rates.masked_fill_(~passes, 0.0)
    return rates.argmax(-1).int()
