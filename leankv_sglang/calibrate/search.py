"""The rate-distortion search: which option every head takes, and how hard bytes are priced."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels import RecordLayout
from leankv_sglang.calibrate.measure import Measured
from leankv_sglang.calibrate.options import Option, table
from leankv_sglang.config import Alphas

STEPS = 7
"""Measurements of one search."""
ADDS_UP = 0.4
"""Share of a target that the estimated costs begin with: where much is pruned costs add up to more than their sum."""
FIXED = 0.05
"""Share of the 16-bit bytes that no option is about: the open page, headers, the near pages."""
_LEAST, _MOST = 1e-12, 1e3


class Target(NamedTuple):
    """What a point is to reach on the calibration windows: a KL in nats, or a ratio of bytes."""

    name: str
    kl: float | None = None
    ratio: float | None = None

    def met(self, measured: Measured) -> bool:
        """Whether a measurement reaches it."""
        return measured.kl <= self.kl if self.kl is not None else measured.ratio >= (self.ratio or 0.0)

    def prefers(self, a: Measured, b: Measured) -> bool:
        """Whether a is better than b: alone reaches the target, or both do and it saves more, or neither does and it
        misses by less."""
        met, other = self.met(a), self.met(b)
        if met != other:
            return met
        saves = a.ratio > b.ratio if self.kl is not None else a.kl < b.kl
        return saves == met


class Found(NamedTuple):
    """Where a search ended."""

    alphas: Alphas
    measured: Measured
    choice: Tensor  # int64 [layers, H], index of the option


class Space:
    """What there is to choose from.

    Args:
        options: of every head.
        cost: their estimated KL, float64 ``[layers, H, options]``.
        significance: of the calibration tokens, float64 ``[layers, H, n]``.
        layout: of the records.
    """

    def __init__(self, options: list[Option], cost: Tensor, significance: Tensor, layout: RecordLayout) -> None:
        self.options, self.cost, self.significance, self.layout = options, cost, significance, layout

    @cached_property
    def nbytes(self) -> Tensor:
        """Bytes of a token and head of every option, headers and padding apart, float64."""
        return torch.tensor([option.token_bytes(self.layout) for option in self.options], dtype=torch.float64)

    def choose(self, price: float) -> Tensor:
        """The options ``[layers, H]`` of least cost where a byte costs ``price``."""
        return (self.cost + price * self.nbytes).argmin(-1)

    def bytes_of(self, choice: Tensor) -> float:
        """Mean bytes of a token and head."""
        return float(self.nbytes[choice].mean())

    def estimated(self, choice: Tensor) -> float:
        """Sum of the estimated costs."""
        return float(self.cost.gather(-1, choice[..., None]).sum())

    def alphas(self, choice: Tensor) -> Alphas:
        """The thresholds of a choice."""
        layers, heads = choice.shape
        return table(
            [[self.options[choice[i, h]].alphas(self.significance[i, h]) for h in range(heads)] for i in range(layers)]
        )

    def first_price(self, target: Target) -> float:
        """The price at which the estimates come to about a target."""
        if target.kl is not None:
            return self._price(ADDS_UP * target.kl, self.estimated)
        raw = 2 * (self.layout.head_dim + self.layout.v_head_dim)
        wanted = max(raw / (target.ratio or 1.0) - FIXED * raw, 1.0)
        return self._price(-wanted, lambda choice: -self.bytes_of(choice))

    def _price(self, target: float, of: Callable[[Tensor], float]) -> float:
        """The highest price at which a figure of the choice, increasing with it, is at most ``target``."""
        low, high = _LEAST, _MOST
        for _ in range(60):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if of(self.choose(middle)) > target else (middle, high)
        return low


def search(
    space: Space, target: Target, measure: Callable[[Alphas], Measured], report: Callable[[Target, Found], None]
) -> Found:
    """Bisect the price of a byte by real measurements.

    Args:
        space: options and their estimated costs.
        target: to be met.
        measure: thresholds to what they really cost and hold.
        report: told of every step.

    Returns:
        of the measurements that meet the target the one nearest to it, or where none does, the nearest at all.
    """
    price = space.first_price(target)
    low, high = 0.0, float("inf")
    best: Found | None = None
    for _ in range(STEPS):
        choice = space.choose(price)
        alphas = space.alphas(choice)
        found = Found(alphas, measure(alphas), choice)
        report(target, found)
        if best is None or target.prefers(found.measured, best.measured):
            best = found
        # A KL is met by spending more bytes, a ratio by spending fewer.
        if target.met(found.measured) == (target.kl is not None):
            low = price
        else:
            high = price
        price = price * 2.5 if high == float("inf") else price / 2.5 if low == 0 else (low * high) ** 0.5
    assert best is not None
    return best
