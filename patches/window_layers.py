"""Target: ``ModelConfig._derive_hybrid_model`` of sglang 0.5.23.

Reason: SGLang gives sliding windows a pool of their own for the models of a list, and keeps all tokens of all layers
for others (Gemma 2 and 3, OLMo 3, Cohere 2, Exaone 4). A window is kept raw here, so keeping more than the window of it
is out of the question. A hook derives the split for whatever model says which of its layers are which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.configs.model_config.ModelConfig._derive_hybrid_model"


def install(split: Callable[[Any], tuple[list[int], list[int]] | None]) -> None:
    """Have ``split(model_config)`` say which layers have a window and which have none; None leaves SGLang's own
    answer. Call while sglang loads its plugins."""

    def after(_result: None, model: Any) -> None:
        if (layers := split(model)) is not None:
            model.is_hybrid_swa = True
            model.swa_attention_layer_ids, model.full_attention_layer_ids = layers

    hook.register(TARGET, after, "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take or its target changed its arguments, else None."""
    return hook.problem(TARGET, "which layers have a window", ["self"])
