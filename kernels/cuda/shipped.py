"""The units that are compiled beforehand: for models that are served with SGLang, at the default pages and tiers."""

from __future__ import annotations

from typing import NamedTuple

from leankv_kernels.cuda.attend import attend_shape
from leankv_kernels.cuda.commit import commit_unit
from leankv_kernels.cuda.open import open_shape
from leankv_kernels.cuda.unit import Unit
from leankv_kernels.layout import TIERS, RecordLayout


class Heads(NamedTuple):
    """An attention shape on one rank."""

    name: str
    kv_heads: int
    head_dim: int
    group: int


MODELS = (
    Heads("SmolLM2-135M", 3, 64, 3),
    Heads("Qwen2.5-0.5B", 2, 64, 7),
    Heads("Llama-3.2-1B", 8, 64, 4),
    Heads("Qwen2.5-1.5B", 2, 128, 6),
    Heads("Qwen3-0.6B", 8, 128, 2),
    Heads("Llama-3.2-3B", 8, 128, 3),
    Heads("Qwen2.5-7B", 4, 128, 7),
    Heads("Llama-3-8B", 8, 128, 4),
    Heads("Qwen3-14B", 8, 128, 5),
    Heads("Llama-3-70B", 8, 128, 8),
    Heads("Llama-3-70B, 8 ranks", 1, 128, 8),
    Heads("Phi-3-mini", 32, 96, 1),
    Heads("Qwen3.5 hybrid", 2, 256, 8),
    Heads("Gemma-3-4B", 4, 256, 2),
)
PAGE_SIZE = 128
TIER_PAIRS = (("k8v4", "k4v2"), ("k4v2", "k4v2"), ("k8v4", "k8v4"))
"""The default, which serves middle tiers too, and single tiers."""


def layout_of(model: Heads, pair: tuple[str, str] = TIER_PAIRS[0]) -> RecordLayout:
    """A model's records; a near part is only worth keeping where there is more than one tier."""
    high, low = (TIERS[name] for name in pair)
    return RecordLayout(PAGE_SIZE, model.kv_heads, model.head_dim, high, low, near=high != low)


def attend_unit(model: Heads, pair: tuple[str, str], many: bool = False) -> Unit:
    """Attention over committed pages."""
    return attend_shape(layout_of(model, pair), model.group, many).unit


def shipped_units() -> list[Unit]:
    """All of them, once each."""
    units = {Unit("states"): None, Unit("shrink"): None, Unit("packing"): None}
    for model in MODELS:
        units[commit_unit(model.head_dim, PAGE_SIZE)] = None
        for many in (False, True):
            units[open_shape(model.head_dim, model.group, PAGE_SIZE, many).unit] = None
            for pair in TIER_PAIRS:
                units[attend_unit(model, pair, many)] = None
    return list(units)
