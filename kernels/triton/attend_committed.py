"""Attention over committed pages by the read rule, in three kernels: rotate queries, attend by splits, merge.

A program takes a block of query rows of one tile and KV head, and one split of its pages. It loads each word of codes
once for the whole query group, turns it into fp16 in registers, and multiplies on tensor cores; queries and weights
come in two fp16 halves, so products are good to 22 bits. Row sums are products too, with a column of ones, and hence
added in the same order however the block is laid out. Splits are merged in order, by the same arithmetic, whether a
program went through all of them (prefill) or each had its own (decode): no bit depends on the batch or the chunk.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv_kernels.plan import Plan
from leankv_kernels.store import RecordStore
from leankv_kernels.triton import planes, read
from leankv_kernels.triton import record as rec
from leankv_kernels.triton.config import ROWS, SPLIT_PAGES, committed_launch, launch, tuned
from leankv_kernels.triton.numbers import (
    LOW_SCALE,
    capped,
    finite,
    hadamard,
    halves,
    merged,
    powers,
    product,
    rotation_log,
    row_sums,
    stacked,
    twice,
    unstacked,
)

ENOUGH_PROGRAMS, PARTIAL_BYTES = 4096, 1 << 27
"""From so many row blocks, or where partial results would take more, a program goes through all splits of its rows."""
_SPLIT = tl.constexpr(SPLIT_PAGES)
_LIFT = tl.constexpr(64.0)  # on scales of values: as far from fp16's smallest numbers as its largest allows
_WIDTH = tl.constexpr(16)  # the least that a matrix product takes
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2_E = 1.4426950408889634


@triton.jit
def prepare_queries(
    q, out, meta, rows, factor, LOG: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr, R: tl.constexpr
):
    """Rotated queries as two fp16 halves ``[rows, 2, PAD]`` below 1, and per row the power of two that was taken out
    and their sum ``[rows, 2]``.
    """
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.arange(0, PAD)[None, :]
    at = row.to(tl.int64)[:, None]
    inside = row[:, None] < rows
    x = tl.load(q + at * DIM + channel, mask=inside & (channel < DIM), other=0.0).to(tl.float32)
    x = hadamard(x, LOG) * factor
    place = planes.key_place_of(channel)
    above, inverse = powers(tl.max(tl.abs(x), 1))
    high, low = halves(x * inverse[:, None])
    tl.store(out + (2 * at) * PAD + place, high, mask=inside)
    tl.store(out + (2 * at + 1) * PAD + place, low, mask=inside)
    total = tl.sum(tl.fma(low.to(tl.float32), 1.0 / LOW_SCALE, high.to(tl.float32)), 1)
    tl.store(meta + 2 * row, above, mask=row < rows)
    tl.store(meta + 2 * row + 1, total, mask=row < rows)


@triton.jit
def _common_scores(q, above, words, table, pages, first, before, head, S: tl.constexpr):
    """What the centres of a split's keys add to the scores of each of its pages, ``[R, _WIDTH]``: one product for all,
    while no softmax state takes registers.
    """
    column = tl.arange(0, _WIDTH)
    inside = (column < _SPLIT) & (first + column < before)
    block = tl.load(table + tl.load(pages + first + column, mask=inside, other=0), mask=inside, other=0)
    centres = read.load_centres(words, block, head, S)
    return unstacked(product(q, centres, tl.full((q.shape[0], _WIDTH), 0.0, tl.float32))) * above[:, None]


@triton.jit
def _attend_page(
    q, above, total, common, peak, acc, sums, zeros, words, block, head, near,
    S: tl.constexpr, N: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """One page on top of a running softmax state: ``peak [R]``, ``acc [2 R, v_pad]``, and sums ``[R, N]``. Within the
    page, scores and peaks are less what is common to its keys, but where scores are capped.
    """
    blocks, kept_keys, kept_values, far, level, base, fine, near_at = rec.open_head(words, block, head, S)
    far_keys, far_values, high_values = rec.far_runs(base, fine, kept_keys, far, S)
    low_values, pruned_scales, pruned_keys, pruned_values = rec.near_runs(near_at, kept_keys, kept_values, far, S)
    pruned = S.page_size - far
    far_steps = (far + (N - 1)) // N
    # That of a page of which nothing is read may be NaN.
    common = tl.where(near | (far > 0), common, 0.0)
    share = common
    if CAP != 0:
        common = tl.full((total.shape[0],), 0.0, tl.float32)
    peak -= common
    for step in range(0, far_steps + tl.where(near, (pruned + (N - 1)) // N, 0)):
        # Far tokens; then, for the near view, pruned ones.
        is_far = step < far_steps
        begin = tl.where(is_far, step, step - far_steps) * N
        stop = tl.where(is_far, far, pruned)
        scale_at = tl.where(is_far, base, pruned_scales)
        key_at = tl.where(is_far, far_keys, pruned_keys)
        value_at = tl.where(is_far, far_values, pruned_values)
        split_keys, split_values = tl.where(is_far, kept_keys, pruned), tl.where(is_far, kept_values, pruned)
        fine_keys = tl.where(is_far, rec.refined_tokens(near, level, kept_keys, far), pruned)
        fine_values = tl.where(is_far, rec.refined_tokens(near, level, kept_values, far), pruned)
        fine_key_at = tl.where(is_far, fine, pruned_keys + planes.key_words(S.key_base_bits, pruned, S))
        pruned_fine = pruned_values + planes.value_words(S.value_base_bits, 0, pruned, S)
        fine_value_at = tl.where(is_far, high_values, pruned_fine)

        token = begin + tl.arange(0, N)
        inside = token < stop
        ks, kz, vs, vz = read.load_scales(words, blocks, scale_at, stop, token, inside, S)
        keys = read.read_keys(
            words, blocks, key_at, fine_key_at, near_at, split_keys, fine_keys, stop, far, begin, S, N
        )
        zero = tl.fma(ks, tl.where(token < fine_keys, S.key_centre_high, S.key_centre_low) - 256.0, kz)
        s = unstacked(product(q, keys, tl.full((2 * total.shape[0], N), 0.0, tl.float32)))
        s = tl.fma(ks[None, :] * 256.0, s, zero[None, :] * total[:, None]) * above[:, None]
        if CAP != 0:
            s = capped(s + share[:, None], CAP)
        s = tl.where(inside[None, :], s, -float("inf"))

        top = tl.maximum(peak, tl.max(s, 1))
        p = tl.exp2(s - finite(top)[:, None])
        decay = tl.exp2(peak - finite(top))
        peak = top
        zero = tl.fma(vs, tl.where(token < fine_values, S.value_centre_high, S.value_centre_low) - 256.0, vz)
        sums = tl.fma(sums, decay[:, None], p)
        zeros = tl.fma(zeros, decay[:, None], p * zero[None, :])
        values = read.read_values(
            words, blocks, value_at, fine_value_at, low_values, split_values, fine_values, stop, far, begin, S, N
        )
        acc = product(stacked(p * (vs * _LIFT)[None, :]), values, acc * twice(decay)[:, None])
    return peak + common, acc, sums, zeros


@triton.jit
def _row_query(row, first, head, HEADS: tl.constexpr, GROUP: tl.constexpr):
    # Rows of a tile are its queries' heads of one group, query by query.
    return (first + row // GROUP) * (HEADS * GROUP) + head * GROUP + row % GROUP


@triton.jit
def attend_pages(
    queries, meta, words, table, pages, tiles, out, state, row_blocks, splits, near_pages,
    HEADS: tl.constexpr, GROUP: tl.constexpr, S: tl.constexpr, R: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr,
    CAP: tl.constexpr,
):  # fmt: skip
    """Softmax states of query rows over the pages of a split, or with ``WHOLE`` over all splits, merged.

    Writes ``out [queries, heads, splits, dim]`` and ``state [queries, heads, splits, 2]`` (peak and sum, base 2) where
    there are pages to read. ``CAP``: of scores, in base 2; 0 for none.
    """
    tile, row_block = tl.program_id(0) // row_blocks, tl.program_id(0) % row_blocks
    head, split = tl.program_id(1), tl.program_id(2)
    at = tiles + 5 * tile
    first, rows = tl.load(at), (tl.load(at + 2) * GROUP).to(tl.int32)
    before, page_at = tl.load(at + 3).to(tl.int32), tl.load(at + 4)
    if (row_block * R >= rows) | (split * _SPLIT >= before):
        return
    row = row_block * R + tl.arange(0, R)
    query = _row_query(row, first, head, HEADS, GROUP)
    above = tl.load(meta + 2 * query, mask=row < rows, other=1.0)
    total = tl.load(meta + 2 * query + 1, mask=row < rows, other=0.0)
    half = tl.arange(0, 2 * R)
    row_of_half = row_block * R + half % R
    half_at = (2 * _row_query(row_of_half, first, head, HEADS, GROUP) + half // R)[:, None] * S.pad
    q = tl.load(queries + half_at + tl.arange(0, S.pad)[None, :], mask=(row_of_half < rows)[:, None], other=0.0)

    all_peak, all_sum = tl.full((R,), -float("inf"), tl.float32), tl.full((R,), 0.0, tl.float32)
    all_out = tl.full((R, S.v_pad), 0.0, tl.float32)
    last = (before + (_SPLIT - 1)) // _SPLIT if WHOLE else split + 1
    for part in range(split, last):
        peak, acc = tl.full((R,), -float("inf"), tl.float32), tl.full((2 * R, S.v_pad), 0.0, tl.float32)
        sums, zeros = tl.full((R, N), 0.0, tl.float32), tl.full((R, N), 0.0, tl.float32)
        commons = _common_scores(q, above, words, table, pages + page_at, part * _SPLIT, before, head, S)
        for number in range(part * _SPLIT, tl.minimum((part + 1) * _SPLIT, before)):
            block = tl.load(table + tl.load(pages + page_at + number))
            near = (number >= before - near_pages) & S.near
            common = tl.sum(tl.where(tl.arange(0, _WIDTH)[None, :] == number - part * _SPLIT, commons, 0.0), 1)
            peak, acc, sums, zeros = _attend_page(
                q, above, total, common, peak, acc, sums, zeros, words, block, head, near, S, N, CAP
            )
        part_out = tl.fma(unstacked(acc), 256.0 / _LIFT, row_sums(zeros)[:, None])
        part_sum = row_sums(sums)
        all_peak, all_sum, all_out = merged(all_peak, all_sum, all_out, peak, part_sum, part_out)

    to = query * splits + split
    channel = planes.value_channel(tl.arange(0, S.v_pad))[None, :]
    inside = (row < rows)[:, None] & (channel < S.v_head_dim)
    tl.store(out + to[:, None] * S.v_head_dim + channel, all_out, mask=inside)
    tl.store(state + 2 * to, all_peak, mask=row < rows)
    tl.store(state + 2 * to + 1, all_sum, mask=row < rows)


@triton.jit
def merge_splits(
    parts, state, token_tile, tiles, out, lse, rows, splits, factor,
    HEADS: tl.constexpr, LOG: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr, R: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Merges the splits of every query row in order, normalizes, and rotates back."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    channel = tl.arange(0, PAD)[None, :]
    tile = tl.load(token_tile + row // HEADS, mask=row < rows, other=0)
    before = tl.load(tiles + 5 * tile + 3, mask=row < rows, other=0)
    count = tl.minimum(before, 1) if WHOLE else (before + (_SPLIT - 1)) // _SPLIT
    peak, total = tl.full((R,), -float("inf"), tl.float32), tl.full((R,), 0.0, tl.float32)
    acc = tl.full((R, PAD), 0.0, tl.float32)
    for part in range(0, tl.max(count, 0)):
        here, at = part < count, row * splits + part
        part_peak = tl.load(state + 2 * at, mask=here, other=-float("inf"))
        part_sum = tl.load(state + 2 * at + 1, mask=here, other=0.0)
        part_out = tl.load(parts + at[:, None] * DIM + channel, mask=here[:, None] & (channel < DIM), other=0.0)
        peak, total, acc = merged(peak, total, acc, part_peak, part_sum, part_out)
    x = hadamard(acc / tl.where(total == 0.0, 1.0, total)[:, None], LOG) * factor
    tl.store(out + row[:, None] * DIM + channel, x, mask=(row < rows)[:, None] & (channel < DIM))
    log = tl.log2(tl.where(total == 0.0, 1.0, total))
    tl.store(lse + row, (finite(peak) + log) * _LN2 + tl.where(total == 0.0, -float("inf"), 0.0), mask=row < rows)


_attend = tuned(attend_pages, ["GROUP", "S", "R", "WHOLE"])


def attend_committed(
    q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_committed``; float32 out and LSE.

    Launches depend on what the plan knows on the host alone; scratch comes from torch's allocator, which serves a CUDA
    graph from memory of its own.
    """
    layout, (tokens, query_heads, dim) = store.layout, q.shape
    planes.check_planes(layout)
    out = torch.empty(tokens, query_heads, layout.v_head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    rows, heads = tokens * query_heads, layout.num_kv_heads
    if not rows:
        return out, lse
    shape, log, value_log = layout.shape, rotation_log(dim, rotation), rotation_log(layout.v_head_dim, rotation)
    norm, value_norm = 1 / math.sqrt(1 << log), 1 / math.sqrt(1 << value_log)
    group = query_heads // heads
    sizes = committed_launch(max(shape.pad, shape.v_pad), group)
    row_blocks = triton.cdiv(plan.max_queries * group, sizes.rows)
    splits = triton.cdiv(max(plan.page_index), SPLIT_PAGES)
    whole = (
        plan.num_tiles * row_blocks * heads >= ENOUGH_PROGRAMS or 4 * rows * splits * layout.v_head_dim > PARTIAL_BYTES
    )
    parts = 1 if whole else max(1, splits)
    prepared = torch.empty(rows, 2, shape.pad, dtype=torch.float16, device=q.device)
    meta = torch.empty(rows, 2, dtype=torch.float32, device=q.device)
    partial = torch.empty(rows, parts, layout.v_head_dim, dtype=torch.float32, device=q.device)
    state = torch.empty(rows, parts, 2, dtype=torch.float32, device=q.device)
    by_rows = (triton.cdiv(rows, ROWS.rows),)
    args: tuple[Any, ...] = (q.contiguous(), prepared, meta, rows, scale * _LOG2_E * norm)
    launch(prepare_queries, by_rows, (*args, log, dim, shape.pad, ROWS.rows), ROWS.options)
    records = (store.blocks.view(torch.int32), store.page_table[layer], plan.pages, plan.tiles)
    constants = (heads, group, shape, sizes.rows, sizes.tokens, whole, cap * _LOG2_E)
    args = (prepared, meta, *records, partial, state, row_blocks, parts, plan.near_pages, *constants)
    kernel, options = _attend(sizes)
    launch(kernel, (plan.num_tiles * row_blocks, heads, parts), args, options)
    args = (partial, state, plan.token_tile, plan.tiles, out, lse, rows, parts, value_norm)
    sizes_of = (query_heads, value_log, layout.v_head_dim, shape.v_pad, ROWS.rows)
    launch(merge_splits, by_rows, (*args, *sizes_of, whole), ROWS.options)
    return out, lse
