"""Target: ``DefaultPoolConfigurator._compute_cell_size`` of sglang 0.5.23.

Reason: SGLang turns its memory budget into tokens by the bytes of a model-dtype token; a token of ours costs what its
page reserves in the store. There is no seam for that, so a hook replaces the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size"


def install(bytes_per_token: Callable[[Any, int], int]) -> None:
    """Have ``bytes_per_token(configurator, num_layers)`` decide. Call while sglang loads its plugins."""

    def after(_result: int, _self: Any, kvc: Any, num_layers: int) -> int:
        return bytes_per_token(kvc, num_layers)

    hook.register(TARGET, after, "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.problem(TARGET, "the price of a token", ["self", "kvc", "num_layers"])
