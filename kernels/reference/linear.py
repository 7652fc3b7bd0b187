"""Products of a linear layer."""

from __future__ import annotations

from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """What a layer without bias makes of rows.

    Args:
        x: ``[M, K]`` of a model's dtype.
        weight: ``[N, K]`` of 16 bits.

    Returns:
        ``x @ weight.T``, float32 ``[M, N]``.
    """
    return (x.double() @ weight.double().T).float()
