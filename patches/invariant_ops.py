"""Target: ``ModelRunner.maybe_enable_batch_invariant_mode`` of sglang 0.5.23, on CPU.

Reason: ``--enable-deterministic-inference`` replaces torch's matrix products and sums by Triton kernels that give a row
the same bits in any batch, and raises where there is no accelerator. On CPU the bits are the same already
(:mod:`leankv_patches.single_row` and the cap on oneDNN's instruction set), so there is nothing to replace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.model_executor.model_runner.ModelRunner.maybe_enable_batch_invariant_mode"


def enable(original: Callable[[Any], None], runner: Any) -> None:
    """``original`` but on CPU."""
    if runner.device != "cpu":
        original(runner)


def install() -> None:
    """Register the hook. Call while sglang loads its plugins."""
    hook.register(TARGET, enable, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.problem(TARGET, "deterministic inference", ["self"])
