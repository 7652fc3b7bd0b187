"""Merge of two partial attentions in one pass."""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv_kernels.triton.config import ROWS, launch
from leankv_kernels.triton.numbers import finite

_LN2 = tl.constexpr(0.6931471805599453)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def merge_rows(
    out_a, lse_a, out_b, lse_b, sinks, out, lse, rows, HEADS: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr,
    R: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Rows ``[R, DIM]`` of both, weighted by their LSE; a row that is empty on one side keeps the other's bits, unless
    there are ``SINKS``.
    """
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    inside = row < rows
    a = tl.load(lse_a + row, mask=inside, other=-float("inf"))
    b = tl.load(lse_b + row, mask=inside, other=-float("inf"))
    peak = tl.maximum(a, b)
    if SINKS:
        sink = tl.load(sinks + row % HEADS)
        peak = tl.maximum(peak, sink)
    weight_a, weight_b = tl.exp2((a - finite(peak)) * _LOG2_E), tl.exp2((b - finite(peak)) * _LOG2_E)
    total = weight_a + weight_b
    if SINKS:
        total += tl.exp2((sink - finite(peak)) * _LOG2_E)
    safe = tl.where(total == 0.0, 1.0, total)
    channel = tl.arange(0, PAD)[None, :]
    at, mask = row[:, None] * DIM + channel, inside[:, None] & (channel < DIM)
    x, y = tl.load(out_a + at, mask=mask, other=0.0), tl.load(out_b + at, mask=mask, other=0.0)
    merged = tl.fma(x, (weight_a / safe)[:, None], y * (weight_b / safe)[:, None])
    tl.store(out + at, merged, mask=mask)
    tl.store(lse + row, peak + tl.where(total == 0.0, 0.0, tl.log2(safe) * _LN2), mask=inside)


def merge_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    dtype: torch.dtype | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.merge_states``; worked out in float32."""
    states = [x.to(torch.float32).contiguous() for x in (out_a, lse_a, out_b, lse_b)]
    out, lse = torch.empty_like(states[0]), torch.empty_like(states[1])
    rows, dim = lse.numel(), out.shape[-1]
    if rows:
        # Without sinks the kernel is given a tensor that it does not read.
        given = states[1] if sinks is None else sinks.to(torch.float32).contiguous()
        sizes = (lse.shape[-1], dim, triton.next_power_of_2(dim), ROWS.rows)
        args = (*states, given, out, lse, rows, *sizes, sinks is not None)
        launch(merge_rows, (triton.cdiv(rows, ROWS.rows),), args, ROWS.options)
    return out if dtype is None else out.to(dtype), lse
