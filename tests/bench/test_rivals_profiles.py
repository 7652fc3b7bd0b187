"""Rivals' settings, as far as they can be looked at without the rivals' own packages."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from bench.quality.rivals.hf import quantized_profiles
from bench.quality.rivals.llamacpp import PAIRS, TYPES
from bench.quality.rivals.presses import MASKING, masked_fraction, press_profiles


def test_names_are_unique() -> None:
    names = [(p.system, p.name) for p in quantized_profiles() + press_profiles()]
    assert len(set(names)) == len(names)


def test_presses_that_only_mask_say_so() -> None:
    assert all(("masks" in p.note) == (p.setting["press"] in MASKING) for p in press_profiles())


def test_pairs_are_known_types() -> None:
    assert all(k in TYPES and v in TYPES for k, v in PAIRS)


def test_masked_fraction_counts_over_layers_and_heads() -> None:
    def layer(masked: int | None) -> SimpleNamespace:
        indices = None if masked is None else (torch.zeros(masked),) * 3
        return SimpleNamespace(self_attn=SimpleNamespace(masked_key_indices=indices))

    model = SimpleNamespace(
        model=SimpleNamespace(layers=[layer(6), layer(None)]), config=SimpleNamespace(num_key_value_heads=3)
    )
    assert masked_fraction(model, context=10) == 0.1
