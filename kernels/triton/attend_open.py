"""Causal attention inside raw open pages, with column scores, for prefill and decode in one kernel.

Not a library's attention: the column scores need the probabilities, which no library gives out, and a query must get
the same bits in a prefill as in decode, where libraries take different kernels. The work is bounded by the page, so it
is a small part of a forward. A program takes a block of queries, all heads of one KV head's group, and goes through the
page's keys twice: for the softmax's peak and sum, then for outputs and scores.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv_kernels.plan import Plan
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.triton.config import launch, open_launch
from leankv_kernels.triton.numbers import FP16_MAX, capped, product

_ONE = tl.constexpr(float(COLUMN_SCORE_ONE))
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2_E = 1.4426950408889634


@triton.jit
def in_range(x, otherwise):
    """Keys and values brought into fp16's range; what is not finite as ``otherwise``."""
    wide = x.to(tl.float32)
    near = tl.minimum(tl.maximum(wide, -FP16_MAX), FP16_MAX)
    return tl.where(tl.abs(wide) < float("inf"), near, otherwise).to(x.dtype)


@triton.jit
def begin_pages(scores, at, tiles, length, B: tl.constexpr):
    """Zeroes the column scores, ``length`` numbers, of tiles that begin their page."""
    tile = tl.program_id(0)
    if tl.load(tiles + 5 * tile + 1) == 0:
        page = scores + tl.load(at + tile) * length
        for begin in range(0, length, B):
            i = begin + tl.arange(0, B)
            tl.store(page + i, tl.full((B,), 0, tl.int32), mask=i < length)


@triton.jit
def _scores(q, key, token, channel, last, position, factor, stride, D: tl.constexpr, CAP: tl.constexpr):
    # [M, N], base 2; -inf for keys that a query does not see.
    inside = (token <= last)[None, :] & (channel < D)[:, None]
    k = in_range(tl.load(key + token[None, :] * stride + channel[:, None], mask=inside, other=0.0), float("nan"))
    s = product(q, k.to(q.dtype), tl.full((q.shape[0], token.shape[0]), 0.0, tl.float32))
    s *= factor
    if CAP != 0:
        s = capped(s, CAP)
    return tl.where(token[None, :] <= position[:, None], s, -float("inf"))


@triton.jit
def attend_raw(
    q, key, value, scores, at, tiles, out, lse, row_blocks, factor, page_stride, token_stride, head_stride,
    value_page_stride, value_token_stride, value_head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PAD_GROUP: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr,
    PAD: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ONE_TILE: tl.constexpr, WIDE: tl.constexpr,
    CAP: tl.constexpr, VALUE_D: tl.constexpr, VALUE_PAD: tl.constexpr,
):  # fmt: skip
    """Rows of a block are queries, for each of them the heads of a group, padded to a power of two.

    ``WIDE``: products in float32 whatever the inputs. Otherwise keys and values share a 16-bit dtype, and a weight is
    split in two numbers of it. ``CAP``: of scores, in base 2; 0 for none.
    """
    tile, row_block, head = tl.program_id(0) // row_blocks, tl.program_id(0) % row_blocks, tl.program_id(1)
    first, offset, count = tl.load(tiles + 5 * tile), tl.load(tiles + 5 * tile + 1), tl.load(tiles + 5 * tile + 2)
    offset, count = offset.to(tl.int32), count.to(tl.int32)
    begin = row_block * (M // PAD_GROUP)
    if begin >= count:
        return
    page = tl.load(at + tile)
    row, channel = tl.arange(0, M), tl.arange(0, PAD)
    rank, member = begin + row // PAD_GROUP, row % PAD_GROUP
    asked = (rank < count) & (member < GROUP)
    query = (first + rank) * (HEADS * GROUP) + head * GROUP + member
    mask = asked[:, None] & (channel < D)[None, :]
    x = tl.load(q + query[:, None] * D + channel[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32) if WIDE else x
    # Rows that were not asked for see what the last query sees, so that nothing is undefined.
    position = tl.minimum(offset + rank, offset + count - 1)
    last = tl.minimum(offset + begin + M // PAD_GROUP, offset + count) - 1
    key += page * page_stride + head * head_stride
    value += page * value_page_stride + head * value_head_stride

    peak, total = tl.full((M,), -float("inf"), tl.float32), tl.full((M,), 0.0, tl.float32)
    for start in range(0, last + 1, N):
        s = _scores(x, key, start + tl.arange(0, N), channel, last, position, factor, token_stride, D, CAP)
        top = tl.maximum(peak, tl.max(s, 1))
        total = tl.fma(total, tl.exp2(peak - top), tl.sum(tl.exp2(s - top[:, None]), 1))
        peak = top

    of_value = tl.arange(0, VALUE_PAD)
    acc = tl.full((M, VALUE_PAD), 0.0, tl.float32)
    for start in range(0, last + 1, N):
        token = start + tl.arange(0, N)
        s = _scores(x, key, token, channel, last, position, factor, token_stride, D, CAP)
        p = tl.exp2(s - peak[:, None]) / total[:, None]
        inside = (token <= last)[:, None] & (of_value < VALUE_D)[None, :]
        v = tl.load(value + token[:, None] * value_token_stride + of_value[None, :], mask=inside, other=0.0)
        # A value that is not finite makes rows NaN that read it, and no others.
        unreadable = tl.max(tl.where(tl.abs(v.to(tl.float32)) < float("inf"), 0, 1), 1) > 0
        p = tl.where(unreadable[None, :] & (token[None, :] <= position[:, None]), float("nan"), p)
        v = in_range(v, 0.0)
        if WIDE:
            acc = product(p, v.to(tl.float32), acc)
        else:
            high = p.to(v.dtype)
            acc = product((p - high.to(tl.float32)).to(v.dtype), v, product(high, v, acc))
        given = tl.where(asked[:, None] & (p == p), tl.floor(tl.fma(p, _ONE, 0.5)).to(tl.int32), 0)
        columns = tl.sum(tl.reshape(given, (M // PAD_GROUP, PAD_GROUP, N)), 0)
        group = tl.arange(0, PAD_GROUP)[:, None]
        to = scores + (page * (HEADS * GROUP) + head * GROUP + group) * PAGE + token[None, :]
        inside = (group < GROUP) & (token <= last)[None, :]
        if ONE_TILE:
            tl.store(to, columns + tl.load(to, mask=inside & (offset > 0), other=0), mask=inside)
        else:
            tl.atomic_add(to, columns, mask=inside, sem="relaxed")
    if ONE_TILE:
        # A page that begins here has no scores behind its last token yet.
        behind = last + 1 + tl.arange(0, N)
        for start in range(0, tl.where(offset == 0, PAGE - last - 1, 0), N):
            group, token = tl.arange(0, PAD_GROUP)[:, None], (start + behind)[None, :]
            to = scores + (page * (HEADS * GROUP) + head * GROUP + group) * PAGE + token
            tl.store(to, tl.full((PAD_GROUP, N), 0, tl.int32), mask=(group < GROUP) & (token < PAGE))
    mask = asked[:, None] & (of_value < VALUE_D)[None, :]
    tl.store(out + query[:, None] * VALUE_D + of_value[None, :], acc, mask=mask)
    tl.store(lse + query, (peak + tl.log2(total)) * _LN2, mask=asked)


def attend_open(q: Tensor, raw: RawPages, plan: Plan, scale: float, cap: float = 0.0) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_open``; float32 out and LSE.

    Raises:
        ValueError: for keys, values or scores whose channels are not contiguous.
    """
    query_heads, heads, dim = q.shape[1], raw.key.shape[2], q.shape[2]
    strides, value_strides, value_dim = raw.key.stride(), raw.value.stride(), raw.value.shape[3]
    if (strides[3], value_strides[3]) != (1, 1) or not raw.scores.is_contiguous():
        raise ValueError("the triton kernels want channels of keys and values, and scores, contiguous")
    out = torch.empty(*q.shape[:2], value_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if not plan.num_tiles:
        return out, lse
    group, pad = query_heads // heads, triton.next_power_of_2(dim)
    value_pad = triton.next_power_of_2(value_dim)
    pad_group, sizes = triton.next_power_of_2(group), open_launch(max(pad, value_pad))
    rows = max(sizes.rows, pad_group)
    row_blocks = triton.cdiv(plan.max_queries, rows // pad_group)
    wide = {q.dtype, raw.key.dtype, raw.value.dtype} not in ({torch.bfloat16}, {torch.float16})
    if row_blocks > 1:
        page = query_heads * plan.page_size
        launch(begin_pages, (plan.num_tiles,), (raw.scores, raw.at, plan.tiles, page, 1024), sizes.options)
    tensors = (q.contiguous(), raw.key, raw.value, raw.scores, raw.at, plan.tiles, out, lse)
    sizes_of = (heads, group, pad_group, plan.page_size, dim, pad, rows, sizes.tokens)
    constants = (*sizes_of, row_blocks == 1, wide, cap * _LOG2_E, value_dim, value_pad)
    args = (*tensors, row_blocks, scale * _LOG2_E, *strides[:3], *value_strides[:3], *constants)
    launch(attend_raw, (plan.num_tiles * row_blocks, heads), args, sizes.options)
    return out, lse
