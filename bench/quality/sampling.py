"""The next token of an answer: the likeliest, or drawn by noise that every system shares.

The noise of a token depends on the answer's seed, the position and the token alone, so two systems whose
probabilities agree draw the same text, and a difference of their scores is not the luck of the draw (Gumbel-max with
common random numbers).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOP = 64
"""Likeliest tokens that are drawn from."""
_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def choose(logits: Tensor, seeds: Sequence[int | None], positions: Sequence[int], temperature: float) -> list[int]:
    """One token a row.

    Args:
        logits: float32 ``[n, V]``.
        seeds: of each answer; None takes the likeliest.
        positions: how many tokens each answer has.
        temperature: of those that are drawn.
    """
    if all(seed is None for seed in seeds):
        likeliest: list[int] = logits.argmax(-1).tolist()
        return likeliest
    top = logits.topk(min(TOP, logits.shape[1]), dim=-1)
    drawn = torch.tensor([seed is not None for seed in seeds], device=logits.device)
    where = torch.tensor([[seed or 0, at] for seed, at in zip(seeds, positions, strict=True)], device=logits.device)
    scores = top.values.double() / temperature + gumbel(where[:, :1], where[:, 1:], top.indices)
    best = torch.where(drawn[:, None], scores, top.values.double()).argmax(-1, keepdim=True)
    tokens: list[int] = top.indices.gather(1, best)[:, 0].tolist()
    return tokens


def gumbel(seed: Tensor, position: Tensor, token: Tensor) -> Tensor:
    """Standard Gumbel noise, float64, from integers of one shape or broadcast: a hash, the same on every device."""
    mixed = _mix(_mix(_mix(seed.long()) ^ position.long()) ^ token.long())
    uniform = ((_shifted(mixed, 11)).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def _mix(x: Tensor) -> Tensor:
    # splitmix64; products wrap.
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right, which torch has not for signed numbers."""
    return (x >> by) & ((1 << (64 - by)) - 1)
