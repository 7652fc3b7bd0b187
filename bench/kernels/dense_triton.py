"""A paged split-KV decode kernel for bf16 in Triton: what bench.kernels has to beat on a GPU.

``python -m bench.kernels.dense_triton`` checks it against torch: on a GPU, or with TRITON_INTERPRET=1 on a CPU.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LOG2_E = 1.4426950408889634


class Launch(NamedTuple):
    """Tokens per step, programs wanted on the device, warps, stages."""

    tokens: int
    programs: int
    warps: int
    stages: int


def launches(device: torch.device) -> list[Launch]:
    """What is worth trying on a device."""
    cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    tiles = ((64, 2, 3), (64, 4, 3), (128, 4, 2), (128, 4, 3), (128, 8, 3))
    return [Launch(tokens, cores * each, warps, stages) for tokens, warps, stages in tiles for each in (2, 4, 8)]


@triton.jit
def attend_split(
    q, k, v, table, parts, state, pages, pages_each, splits, factor,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One KV head's queries of one request over a split of its pages; state is peak and sum, base 2."""
    request, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, channel, token = tl.arange(0, R), tl.arange(0, DIM), tl.arange(0, N)
    query = (request * HEADS + head) * GROUP + row
    rows = tl.load(q + query[:, None] * DIM + channel[None, :], mask=row[:, None] < GROUP, other=0.0)
    peak = tl.full((R,), -float("inf"), tl.float32)
    total = tl.full((R,), 0.0, tl.float32)
    acc = tl.full((R, DIM), 0.0, tl.float32)
    STEPS: tl.constexpr = PAGE // N
    last = tl.minimum((split + 1) * pages_each, pages)
    for step in range(split * pages_each * STEPS, last * STEPS):
        page = tl.load(table + request * pages + step // STEPS).to(tl.int64)
        at = ((page * PAGE + step % STEPS * N + token) * HEADS + head) * DIM
        keys = tl.load(k + at[None, :] + channel[:, None])
        values = tl.load(v + at[:, None] + channel[None, :])
        scores = tl.dot(rows, keys) * factor
        top = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - top[:, None])
        decay = tl.exp2(peak - top)
        peak = top
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * decay[:, None])
    to = query * splits + split
    tl.store(parts + to[:, None] * DIM + channel[None, :], acc, mask=row[:, None] < GROUP)
    tl.store(state + 2 * to, peak, mask=row < GROUP)
    tl.store(state + 2 * to + 1, total, mask=row < GROUP)


@triton.jit
def join_splits(parts, state, out, splits, S: tl.constexpr, DIM: tl.constexpr):
    """A query's splits as one."""
    query = tl.program_id(0).to(tl.int64)
    split, channel = tl.arange(0, S), tl.arange(0, DIM)
    here = split < splits
    at = query * splits + split
    peak = tl.load(state + 2 * at, mask=here, other=-float("inf"))
    share = tl.exp2(peak - tl.max(peak, 0))
    total = tl.sum(share * tl.load(state + 2 * at + 1, mask=here, other=0.0), 0)
    values = tl.load(parts + at[:, None] * DIM + channel[None, :], mask=here[:, None], other=0.0)
    result = tl.sum(share[:, None] * values, 0) / total
    tl.store(out + query * DIM + channel, result.to(out.dtype.element_ty))


def dense_decode(q: Tensor, k: Tensor, v: Tensor, table: Tensor, scale: float, launch: Launch) -> Tensor:
    """Attention of ``q [B, Hq, D]`` over all tokens of pages ``k, v [n, P, H, D]`` by ``table``, int32 ``[B, n]``."""
    batch, query_heads, dim = q.shape
    _, page, heads, _ = k.shape
    pages, group = table.shape[1], query_heads // heads
    pages_each = triton.cdiv(pages, min(pages, max(1, launch.programs // (batch * heads))))
    splits = triton.cdiv(pages, pages_each)
    parts = torch.empty(batch, query_heads, splits, dim, dtype=torch.float32, device=q.device)
    state = torch.empty(batch, query_heads, splits, 2, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    attend_split[(batch, heads, splits)](
        *(q, k, v, table, parts, state, pages, pages_each, splits, scale * LOG2_E),
        *(heads, group, dim, page, max(16, triton.next_power_of_2(group)), launch.tokens),
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    join_splits[(batch * query_heads,)](parts, state, out, splits, triton.next_power_of_2(splits), dim)
    return out


def check(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Largest relative error against torch in float64, over shapes with odd groups and uneven splits."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, heads, group, dim, pages in ((1, 3, 3, 64, 1), (2, 2, 7, 64, 3), (2, 1, 4, 128, 5)):
        q = torch.randn(batch, heads * group, dim, generator=generator) * 2
        k, v = torch.randn(2, batch * pages, 128, heads, dim, generator=generator)
        table = torch.randperm(batch * pages, generator=generator).view(batch, pages)
        q, k, v = (x.to(device, dtype) for x in (q, k, v))
        k_in_order, v_in_order = (x.double()[table].flatten(1, 2).transpose(1, 2) for x in (k, v))
        want = scaled_dot_product_attention(q.double()[:, :, None], k_in_order, v_in_order, enable_gqa=True)[:, :, 0]
        for launch in (Launch(64, 2, 4, 2), Launch(128, 12, 4, 3)):
            out = dense_decode(q, k, v, table.int().to(device), dim**-0.5, launch).double()
            worst = max(worst, float((out - want).norm() / want.norm()))
    return worst


if __name__ == "__main__":
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float16)
    error = check(torch.device(device), dtype)
    print(f"relative error against torch in float64: {error:.1e}")
    assert error < 1e-2
