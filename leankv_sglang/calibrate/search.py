"""The rate-distortion search: which option every head takes, and how hard bytes are priced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels import RecordLayout
from leankv_sglang.calibrate.measure import Measured
from leankv_sglang.calibrate.options import Option, table
from leankv_sglang.config import Alphas

STEPS = 7
"""Measurements of one search."""
_LEAST, _MOST = 1e-12, 1e3


class Found(NamedTuple):
    """Where a search ended."""

    alphas: Alphas
    measured: Measured
    choice: Tensor  # int64 [layers, H], index of the option


class Space(NamedTuple):
    """What there is to choose from."""

    options: list[Option]
    cost: Tensor  # float64 [layers, H, options], estimated KL
    significance: Tensor  # float64 [layers, H, n], of calibration tokens
    layout: RecordLayout

    def choose(self, price: float) -> Tensor:
        """The options ``[layers, H]`` of least cost where a byte costs ``price``."""
        nbytes = torch.tensor([option.token_bytes(self.layout) for option in self.options], dtype=torch.float64)
        return (self.cost + price * nbytes).argmin(-1)

    def bytes_of(self, choice: Tensor) -> float:
        """Mean bytes of a token and head, headers and padding apart."""
        nbytes = torch.tensor([option.token_bytes(self.layout) for option in self.options])
        return float(nbytes[choice].mean())

    def alphas(self, choice: Tensor) -> Alphas:
        """The thresholds of a choice."""
        layers, heads = choice.shape
        return table(
            [[self.options[choice[i, h]].alphas(self.significance[i, h]) for h in range(heads)] for i in range(layers)]
        )

    def price_of(self, target: float, of: Callable[[Tensor], float]) -> float:
        """The price at which an increasing figure of the choice reaches a target."""
        low, high = _LEAST, _MOST
        for _ in range(60):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if of(self.choose(middle)) > target else (middle, high)
        return low

    def estimated(self, choice: Tensor) -> float:
        """Sum of the estimated costs."""
        return float(self.cost.gather(-1, choice[..., None]).sum())


def search(
    space: Space,
    measure: Callable[[Alphas], Measured],
    good: Callable[[Measured], bool],
    first_kl: float,
    more_bytes_is_good: bool,
    report: Callable[[Found], None],
) -> Found:
    """Bisect the price of a byte by real measurements.

    Args:
        space: options and their estimated costs.
        measure: thresholds to what they really cost and hold.
        good: whether a measurement meets the target.
        first_kl: estimated KL to begin with.
        more_bytes_is_good: whether the target is met by spending more bytes (a KL) or fewer (a ratio).
        report: told of every step.

    Returns:
        of the measurements that meet the target the one nearest to it, or where none does, the nearest at all.
    """
    price = space.price_of(first_kl, space.estimated)
    low, high = 0.0, float("inf")
    best: Found | None = None
    for _ in range(STEPS):
        choice = space.choose(price)
        alphas = space.alphas(choice)
        found = Found(alphas, measure(alphas), choice)
        report(found)
        met = good(found.measured)
        if best is None or _better(found, best, good, more_bytes_is_good):
            best = found
        if met == more_bytes_is_good:
            low = price
        else:
            high = price
        price = price * 2.5 if high == float("inf") else price / 2.5 if low == 0 else (low * high) ** 0.5
    assert best is not None
    return best


def _better(a: Found, b: Found, good: Callable[[Measured], bool], by_kl: bool) -> bool:
    """Whether a is to be preferred: alone to meet the target, or both do and it saves more, or neither and it misses by
    less."""
    met, other = good(a.measured), good(b.measured)
    if met != other:
        return met
    saves = a.measured.ratio > b.measured.ratio if by_kl else a.measured.kl < b.measured.kl
    return saves == met
