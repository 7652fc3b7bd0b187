"""Thresholds as the ops take them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leankv_sglang.config import Alphas
from leankv_sglang.errors import LeanKVError


def threshold_table(
    alphas: Alphas, layers: int, heads: int, of_rank: Callable[[Tensor], Tensor] = lambda table: table
) -> Tensor:
    """Thresholds of every layer and KV head held here, float64 ``[layers, 3, heads]``.

    Args:
        alphas: one number for all heads, or a table of all KV heads, each.
        heads: KV heads held here.
        of_rank: from a table ``[layers, all KV heads]`` to what this rank holds.

    Raises:
        LeanKVError: where a table is not of this shape.
    """
    out = torch.empty(layers, len(alphas), heads, dtype=torch.float64)
    for i, value in enumerate(alphas):
        table = torch.as_tensor(value, dtype=torch.float64)
        if table.ndim:
            table = of_rank(table)
            if tuple(table.shape) != (layers, heads):
                shape = tuple(table.shape)
                raise LeanKVError(f"The LeanKV profile has thresholds of shape {shape}, the pool {(layers, heads)}.")
        out[:, i] = table
    return out


def rank_heads(table: Tensor, heads: int, filled_up: bool = False) -> Tensor:
    """The columns of a table ``[layers, all KV heads, ...]`` of this tensor-parallel rank, which holds ``heads``.

    Where heads of zeros were filled up for ranks to have as many (see :mod:`leankv_sglang.models.ranks`), these get
    what the last one has.
    """
    from sglang.srt.runtime_context import get_parallel

    if table.shape[1] == heads:
        return table
    parallel = get_parallel()
    if filled_up:
        columns = torch.arange(heads, device=table.device) + parallel.attn_tp_rank * heads
        return table[:, columns.clamp(max=table.shape[1] - 1)]
    # With fewer heads than ranks, several ranks hold the same one.
    first = parallel.attn_tp_rank * table.shape[1] // parallel.attn_tp_size
    return table[:, first : first + heads]
