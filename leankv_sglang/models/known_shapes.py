"""Shapes of models that people serve, so that a memory can be planned without having one at hand."""

from __future__ import annotations

from leankv_sglang.models.shape import ModelShape

KNOWN_SHAPES = {
    "Llama-3-8B": ModelShape(32, 32, 8, 128),
    "Llama-3-70B": ModelShape(80, 64, 8, 128),
    "Llama-3.2-1B": ModelShape(16, 32, 8, 64),
    "Llama-3.2-3B": ModelShape(28, 24, 8, 128),
    "Mistral-7B": ModelShape(32, 32, 8, 128),
    "Phi-4": ModelShape(40, 40, 10, 128),
    "Qwen2.5-0.5B": ModelShape(24, 14, 2, 64),
    "Qwen2.5-1.5B": ModelShape(28, 12, 2, 128),
    "Qwen2.5-7B": ModelShape(28, 28, 4, 128),
    "Qwen2.5-14B": ModelShape(48, 40, 8, 128),
    "Qwen2.5-32B": ModelShape(64, 40, 8, 128),
    "Qwen2.5-72B": ModelShape(80, 64, 8, 128),
    "Qwen3-0.6B": ModelShape(28, 16, 8, 128),
    "Qwen3-8B": ModelShape(36, 32, 8, 128),
    "Qwen3-14B": ModelShape(40, 40, 8, 128),
    "Qwen3-32B": ModelShape(64, 64, 8, 128),
}
"""By family and size; fine-tunes (Instruct, Coder, 3.1) have the shape of what they were made from."""


def known_shape(name: str) -> ModelShape | None:
    """The shape of a model by its name, in any case and with or without an organization."""
    plain = name.rsplit("/", 1)[-1].lower()
    return next((shape for known, shape in KNOWN_SHAPES.items() if known.lower() == plain), None)
