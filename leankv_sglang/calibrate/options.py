"""What a KV head may be given: shares of its tokens, by significance, at each tier."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, RecordLayout
from leankv_kernels.reference.tiers import NEVER
from leankv_sglang.config import Alphas


class Option(NamedTuple):
    """Shares of a head's tokens that are high, mid and low, most significant first; the rest is pruned."""

    high: float
    mid: float
    low: float

    def token_bytes(self, layout: RecordLayout) -> float:
        """Bytes of a token in the far view, headers and padding apart."""
        size = layout.token_bytes
        base = size.scale + size.key_base + size.value_base
        fine = self.high * (size.key_refine + size.value_refine) + self.mid * layout.mid_refine_bytes
        return (self.high + self.mid + self.low) * base + fine

    def tiers(self, significance: Tensor) -> Tensor:
        """Tiers uint8 ``[..., n]`` of tokens by their rank in significance ``[..., n]``."""
        count = significance.shape[-1]
        rank = significance.argsort(-1, descending=True).argsort(-1).to(torch.float64) + 0.5
        bounds = [count * sum(self[: tier + 1]) for tier in range(3)]
        tiers = torch.full_like(significance, PRUNED, dtype=torch.uint8)
        for tier, bound in zip((LOW, MID, HIGH), bounds[::-1], strict=True):
            tiers[rank < bound] = tier
        return tiers

    def alphas(self, significance: Tensor) -> tuple[float, float, float]:
        """Thresholds that give tokens of a head, significance ``[n]``, these shares; rounded to four digits."""
        ordered = significance.sort(descending=True).values
        count, kept, out = len(ordered), 0.0, []
        for share in self:
            kept += share
            last = round(kept * count)
            if share == 0:
                alpha = NEVER
            elif last >= count:
                alpha = 0.0
            else:
                alpha = float(ordered[last - 1] + ordered[last]) / 2
            out.append(float(f"{alpha:.4g}"))
        high, mid, low = out
        if self.low == 0:
            # What is not mid is pruned.
            low = 0.0 if self.high + self.mid >= 1 else NEVER
        return high, mid, low


_SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)


def options(mid: bool, prune: bool = True) -> list[Option]:
    """The choices of a head, from all high to all pruned; with a middle tier those that use it too.

    Args:
        mid: whether there is a middle tier.
        prune: whether tokens may be pruned.
    """
    found = [Option(high, 0.0, 1 - high) for high in _SHARES[::-1]]
    found += [Option(0.0, 0.0, low) for low in (0.75, 0.5, 0.35, 0.2, 0.1, 0.0)]
    found += [Option(0.1, 0.0, 0.4)]
    if mid:
        found += [Option(high, 1 - high, 0.0) for high in (0.25, 0.1, 0.0)]
        found += [Option(0.0, share, 1 - share) for share in (0.5, 0.25, 0.1)]
        found += [Option(0.0, 0.5, 0.0), Option(0.0, 0.25, 0.25), Option(0.0, 0.2, 0.0), Option(0.0, 0.1, 0.1)]
    return [option for option in found if prune or sum(option) > 1 - 1e-9]


def table(chosen: list[list[tuple[float, float, float]]]) -> Alphas:
    """Thresholds by layer and head, ``[layers][heads]`` triples, as a profile has them."""
    return Alphas(*(tuple(tuple(head[i] for head in layer) for layer in chosen) for i in range(3)))
