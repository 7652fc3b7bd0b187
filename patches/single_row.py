"""Target: ``UnquantizedLinearMethod.apply`` of sglang 0.5.23, on CPU.

Reason: a 16-bit linear layer gives a row the same bits for any number of rows from two on, but the library takes
another path, with another order of summation, for a single row (measured: 190 of 1.2 million outputs of SmolLM2's down
projection differ by a rounding, none for 2 to 2,048 rows). Decode of a lone request is that single row, so its K and V
would differ from what prefill, or a batch, computes for the same token. Doubling the row costs nothing and makes a hit
equal a miss in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from leankv_patches import hook

TARGET = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply"


def two_rows(original: Callable[..., Tensor], method: Any, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``original`` with a lone row of a CPU tensor ``[1, K]`` run as two, of which the first is returned."""
    if x.dim() == 2 and x.shape[0] == 1 and x.device.type == "cpu":
        return original(method, layer, x.expand(2, -1).contiguous(), *args, **kwargs)[:1]
    return original(method, layer, x, *args, **kwargs)


def install() -> None:
    """Register the hook. Call while sglang loads its plugins."""
    hook.register(TARGET, two_rows, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take, else None."""
    return hook.problem(TARGET, "linear layers")
