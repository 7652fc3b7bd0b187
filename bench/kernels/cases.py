"""What bench.kernels measures: model shapes, mixes of tiers, and the bytes that a call has to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

import bench.common.checkout  # noqa: F401
from leankv_kernels import HIGH, LOW, PRUNED, TIERS, RecordLayout, TierCounts
from leankv_kernels.layout import LEVEL_FAR, LEVEL_NEAR

PAGE, WINDOW, ROTATION = 128, 1, "hadamard"
PATTERNS = 64
"""Distinct drawings of tiers; the pages of a pool take them in turn."""
LONG_SHARE, SHORT_KEEP = 3, 0.1
"""Skew: one head in three keeps every token, the others a tenth."""


class Shape(NamedTuple):
    """A model's attention."""

    name: str
    query_heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.query_heads // self.kv_heads

    @property
    def scale(self) -> float:
        """Factor on q.k."""
        return self.head_dim**-0.5

    def dense_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens in 16 bits."""
        return 2 * 2 * self.kv_heads * self.head_dim * tokens


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("SmolLM2", 9, 3, 64),
        Shape("Qwen2.5-0.5B", 14, 2, 64),
        Shape("Llama-3-8B", 32, 8, 128),
        Shape("Qwen2.5-7B", 28, 4, 128),
        Shape("Llama-3-70B", 64, 8, 128),
    )
}


class Mix(NamedTuple):
    """Two tiers, and per KV head the shares of high and of low tokens; the rest is pruned."""

    high: str
    low: str
    shares: Callable[[int], list[tuple[float, float]]]


def _skew(heads: int) -> list[tuple[float, float]]:
    long = max(1, heads // LONG_SHARE)
    return [(0.0, 1.0)] * long + [(0.0, SHORT_KEEP)] * (heads - long)


def _balanced(heads: int) -> list[tuple[float, float]]:
    return [(0.0, sum(low for _, low in _skew(heads)) / heads)] * heads


MIXES = {
    "k8v4": Mix("k8v4", "k8v4", lambda heads: [(1.0, 0.0)] * heads),
    "k4v2": Mix("k4v2", "k4v2", lambda heads: [(0.0, 1.0)] * heads),
    "mix": Mix("k8v4", "k4v2", lambda heads: [(0.25, 0.65)] * heads),
    "skew": Mix("k8v4", "k4v2", _skew),
    "balanced": Mix("k8v4", "k4v2", _balanced),
}


class Bundle(NamedTuple):
    """Rows that share their dense baselines: one batch at several mixes of tiers."""

    shape: Shape
    context: int
    batch: int
    tiers: tuple[str, ...]
    prefix: bool = False
    """Whether all requests read the same pages."""

    @property
    def contexts(self) -> int:
        """Contexts that lie in memory."""
        return 1 if self.prefix else self.batch

    @property
    def dense_bytes(self) -> int:
        """Bytes that dense attention has to read."""
        return self.shape.dense_bytes(self.context * self.contexts)


@cache
def layout_of(shape: Shape, mix: str) -> RecordLayout:
    """The records of a mix."""
    return RecordLayout(PAGE, shape.kv_heads, shape.head_dim, TIERS[MIXES[mix].high], TIERS[MIXES[mix].low])


def draw_tiers(shape: Shape, mix: str) -> Tensor:
    """Tiers ``[PATTERNS, H, P]``, each token drawn by its head's shares, so counts differ from page to page."""
    drawn = torch.rand(PATTERNS, shape.kv_heads, PAGE, generator=torch.Generator().manual_seed(7))
    shares = torch.tensor(MIXES[mix].shares(shape.kv_heads))
    high, kept = shares[:, :1], shares.sum(1, keepdim=True)
    tiers = torch.where(drawn < kept, LOW, PRUNED)
    return torch.where(drawn < high, HIGH, tiers).to(torch.uint8)


def record_bytes(layout: RecordLayout, tiers: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of every record ``[n]`` that its far and its near view read: header, base and refinement, near part."""
    counts = TierCounts.of(tiers)
    levels = (torch.full((len(tiers),), level) for level in (LEVEL_FAR, LEVEL_NEAR))
    far, near = (layout.level_bytes(counts, level) for level in levels)
    return far, near


def packed(
    bundles: Sequence[Bundle], cost: Callable[[Bundle], int], budget: int
) -> tuple[list[list[Bundle]], list[str]]:
    """Bundles as groups that fit into memory together and are measured in the same rounds; notes on those left out.

    A bundle that does not fit is measured one mix at a time.
    """
    groups: list[list[Bundle]] = []
    notes = []
    for bundle in bundles:
        fits = cost(bundle) <= budget
        for part in [bundle] if fits else [bundle._replace(tiers=(tiers,)) for tiers in bundle.tiers]:
            if cost(part) > budget:
                what = f"{part.shape.name} {part.tiers[0]}, context {part.context}, batch {part.batch}"
                notes.append(f"left out: {what} takes {cost(part) / 1e9:.1f} GB of {budget / 1e9:.1f}")
            elif groups and sum(map(cost, groups[-1])) + cost(part) <= budget:
                groups[-1].append(part)
            else:
                groups.append([part])
    return groups, notes
