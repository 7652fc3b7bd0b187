"""What the kernel tests draw: layouts, tier maps from harmless to ugly, and pages of values. Needs torch alone, so that
the checks on a GPU (bench/gpu) draw the same.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, TIERS, RecordLayout, Tier
from leankv_kernels.layout.format import CUTS
from leankv_kernels.reference.record import encode

HEAD_DIMS = (64, 80, 96, 128, 256)
PAIRS = [
    (high, low)
    for high, low in itertools.product(TIERS.values(), repeat=2)
    if {high.key_bits - low.key_bits, high.value_bits - low.value_bits} <= set(CUTS)
]
"""Every pair whose low tier is a cut of its high tier, single tiers included."""


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether this process runs Triton kernels in their interpreter, a thousand times slower than anything else here."""


def pair_name(pair: tuple[Tier, Tier]) -> str:
    """A test id."""
    return f"{pair[0].name},{pair[1].name}"


def generator(seed: int) -> torch.Generator:
    """A generator of its own for every test."""
    return torch.Generator().manual_seed(seed)


def random_layout(rng: Random, pair: tuple[Tier, Tier] | None = None, head_dim: int | None = None) -> RecordLayout:
    """A layout of a shape that models have."""
    high, low = pair or rng.choice(PAIRS)
    return RecordLayout(
        rng.choice((64, 64, 128, 256)),
        rng.randint(1, 8),
        head_dim or rng.choice(HEAD_DIMS),
        high,
        low,
        near=rng.random() < 0.7,
        mid=rng.choice([None, *mids(high, low)]),
        v_head_dim=rng.choice((0, 0, *HEAD_DIMS)),
    )


def mids(high: Tier, low: Tier) -> list[Tier]:
    """The tiers that can lie between two."""
    crossed = {Tier(high.key_bits, low.value_bits), Tier(low.key_bits, high.value_bits)}
    return sorted(crossed - {high, low})


def small_layout(pair: str = "k8v4,k4v2", **changes: int | bool) -> RecordLayout:
    """A layout whose records take few bytes yet several blocks."""
    high, *between, low = (TIERS[name] for name in pair.split(","))
    shape = {"page_size": 32, "num_kv_heads": 2, "head_dim": 64, "near": True} | changes
    return RecordLayout(high=high, low=low, mid=between[0] if between else None, **shape)  # type: ignore[arg-type]


def _random_tiers(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(0, 4, shape, generator=generator(seed), dtype=torch.uint8)


def _one_head_pruned(shape: tuple[int, int], seed: int) -> Tensor:
    tiers = _random_tiers(shape, seed)
    tiers[seed % shape[0]] = PRUNED
    return tiers


def _one_token_high(shape: tuple[int, int], seed: int) -> Tensor:
    tiers = torch.full(shape, PRUNED, dtype=torch.uint8)
    tiers[seed % shape[0], seed % shape[1]] = HIGH
    return tiers


TIER_MAPS: dict[str, Callable[[tuple[int, int], int], Tensor]] = {
    "random": _random_tiers,
    "all pruned": lambda shape, _: torch.full(shape, PRUNED, dtype=torch.uint8),
    "all high": lambda shape, _: torch.full(shape, HIGH, dtype=torch.uint8),
    "all mid": lambda shape, _: torch.full(shape, MID, dtype=torch.uint8),
    "all low": lambda shape, _: torch.full(shape, LOW, dtype=torch.uint8),
    "one head all pruned": _one_head_pruned,
    "one token high": _one_token_high,
}


def random_tier_maps(rng: Random, layout: RecordLayout, n: int = 2) -> Tensor:
    """Tiers ``[n, H, P]``, each record's of a pattern of its own."""
    shape = (layout.num_kv_heads, layout.page_size)
    return torch.stack([rng.choice([*TIER_MAPS.values()])(shape, rng.getrandbits(32)) for _ in range(n)])


def formats(layout: RecordLayout) -> dict[int, Tier]:
    """What each tier but the pruned keeps; without a format of its own, mid is low."""
    return {HIGH: layout.high, MID: layout.mid or layout.low, LOW: layout.low}


def wild_rows(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values of very different scale and offset per token, some with one channel that sticks out, some with channels
    nearly alike; float64.
    """
    g = generator(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    per_token = (*shape[:-1], 1)
    x *= 10 ** torch.empty(per_token, dtype=torch.float64).uniform_(-3, 2, generator=g)
    x += torch.randn(per_token, generator=g, dtype=torch.float64) * 50
    outlier = torch.rand(per_token, generator=g) < 0.2
    x[..., :1] += torch.where(outlier, 1000.0, 0.0)
    alike = torch.rand(per_token, generator=g) < 0.2
    return torch.where(alike, x.mean(-1, keepdim=True) + 1e-2 * x, x)


@dataclass(frozen=True, repr=False)
class Committed:
    """Encoded pages, with what went into them."""

    layout: RecordLayout
    tiers: Tensor  # [n, H, P]
    key: Tensor  # float64 [n, H, P, D]
    value: Tensor  # float64 [n, H, P, Dv]
    records: Tensor
    nbytes: Tensor

    def __repr__(self) -> str:
        return f"{len(self.tiers)} pages of {self.layout}"


def calm_rows(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values such as a model has, some channels far off zero; float64. Attention over them is not peaked."""
    x = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return x + torch.arange(shape[-1]).cos()


def commit(
    layout: RecordLayout,
    tiers: Tensor,
    seed: int,
    rows: Callable[[tuple[int, ...], int], Tensor] = wild_rows,
    device: str = "cpu",
) -> Committed:
    """Encode pages of values, wild ones unless said, with these tiers, on a device."""
    tiers = tiers.to(device)
    key = rows((*tiers.shape, layout.head_dim), seed).to(device)
    value = rows((*tiers.shape, layout.v_head_dim), seed + 1).to(device)
    return Committed(layout, tiers, key, value, *encode(key, value, tiers, layout))
