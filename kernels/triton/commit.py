"""Commit of full pages: rotation, quantization and packing in one kernel, in float64, to the reference's bytes.

Records are written whole, in a row of memory each; ``RecordStore.write`` takes blocks and lays them over these.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv_kernels import layout as L
from leankv_kernels.layout import HIGH, LOW, MID, PRUNED, TierCounts
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.codec import centre_of
from leankv_kernels.reference.commit import kept_rows
from leankv_kernels.store import RecordStore
from leankv_kernels.triton import planes
from leankv_kernels.triton import record as rec
from leankv_kernels.triton.config import Launch, launch
from leankv_kernels.triton.numbers import FP16_MAX, hadamard, rotation_log
from leankv_kernels.triton.planes import store_keys, store_values
from leankv_kernels.triton.write import store_head, store_lengths, store_tiers

TOKENS = 16
"""Of a program: a whole key group, and whole quads."""
_RANK = [[HIGH, MID, LOW, PRUNED].index(tier) for tier in range(4)]
"""Place of every tier in the order of tokens."""
TILE = Launch(0, TOKENS, 4, 1)
_ROUND = tl.constexpr(6755399441055744.0)  # 1.5 * 2**52: what is added to it loses its fraction, to even


@triton.jit
def half_below(x):
    """The largest fp16 that is at most ``x`` (float64)."""
    half = x.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True)
    below = tl.where(half > 0, bits - 1, tl.where(half < 0, bits + 1, -32767)).to(tl.int16)
    return tl.where(half.to(tl.float32).to(tl.float64) > x, below, bits).to(tl.float16, bitcast=True)


@triton.jit
def _code(x, low, high):
    zero = half_below(low)
    start = zero.to(tl.float32).to(tl.float64)
    scale = -half_below(-(high - start) / 255.0)
    step = scale.to(tl.float32).to(tl.float64)
    codes = (x - start[:, None]) / tl.where(step > 0, step, 1.0)[:, None]
    return ((codes + _ROUND) - _ROUND).to(tl.int32), scale, zero


@triton.jit
def _distance(codes, scale, channel, WIDTH: tl.constexpr, LEAST: tl.constexpr):
    far, near = (codes & (WIDTH - 1)) * 2 - (WIDTH - 1), (codes & (LEAST - 1)) * 2 - (LEAST - 1)
    wide = scale.to(tl.float32).to(tl.float64)
    return tl.sum(tl.where(channel, far * far + near * near, 0), 1).to(tl.float64) * (wide * wide)


@triton.jit
def _strays(codes, channel, WIDTH: tl.constexpr, DIM: tl.constexpr):
    EVEN: tl.constexpr = DIM * (WIDTH * WIDTH - 1)
    off = tl.where(channel, (codes & (WIDTH - 1)) * 2 - (WIDTH - 1), 0)
    aside, squares = tl.sum(off, 1).to(tl.int64), tl.sum(off * off, 1)
    return (3 * aside * aside > 4 * EVEN) | (12 * squares > 5 * EVEN)


@triton.jit
def _extension(codes, scale, channel, WIDTH: tl.constexpr, LEAST: tl.constexpr, DIM: tl.constexpr):
    REST: tl.constexpr = DIM - 2
    FIRST: tl.constexpr = WIDTH - 1 - LEAST if LEAST < WIDTH else WIDTH - 1
    BIN: tl.constexpr = 2 * WIDTH * REST
    bulk = tl.sum(tl.where(channel, codes, 0), 1) - 255
    upper = 2 * bulk > 255 * REST
    bulk = tl.where(upper, 255 * REST - bulk, bulk)
    past = tl.maximum(2 * bulk - (1 + FIRST) * REST, 0)
    centre = (past + (BIN - 1)) // BIN * (2 * WIDTH) + FIRST
    way = tl.maximum(centre * REST - 2 * bulk, 0)
    share = way.to(tl.float64) / ((510 - centre) * REST).to(tl.float64)
    extension = share * (255.0 * scale.to(tl.float32).to(tl.float64))
    return tl.where(upper, 0.0, extension), tl.where(upper, extension, 0.0)


@triton.jit
def quantize(x, inside, BITS: tl.constexpr, MOST: tl.constexpr, DIM: tl.constexpr):
    """See ``reference.codec.quantize``, also for its parts: codes int32 ``[N, PAD]`` (0 where not inside), scale and
    zero fp16 ``[N]``, and how many rows inside saturate.
    """
    channel = tl.arange(0, x.shape[1])[None, :] < DIM
    beyond = tl.max(tl.where(channel, tl.abs(x), 0.0), 1) > FP16_MAX
    x = tl.minimum(tl.maximum(x, -FP16_MAX), FP16_MAX)
    low, high = tl.min(tl.where(channel, x, float("inf")), 1), tl.max(tl.where(channel, x, -float("inf")), 1)
    codes, scale, zero = _code(x, low, high)
    if BITS < 8:
        WIDTH: tl.constexpr = 1 << (8 - BITS)
        LEAST: tl.constexpr = 1 << (8 - MOST)
        below, above = _extension(codes, scale, channel, WIDTH, LEAST, DIM)
        other, other_scale, other_zero = _code(x, tl.maximum(low - below, -FP16_MAX), high + above)
        closer = _distance(other, other_scale, channel, WIDTH, LEAST) < _distance(codes, scale, channel, WIDTH, LEAST)
        closer = closer & (_strays(codes, channel, WIDTH, DIM) | _strays(codes, channel, LEAST, DIM))
        codes = tl.where(closer[:, None], other, codes)
        scale, zero = tl.where(closer, other_scale, scale), tl.where(closer, other_zero, zero)
    return tl.where(inside[:, None] & channel, codes, 0), scale, zero, tl.sum((beyond & inside).to(tl.int64), 0)


@triton.jit
def _rotated(raw, at, channel, inside, LOG: tl.constexpr, NORM: tl.constexpr, DIM: tl.constexpr):
    x = tl.load(raw + at[:, None] + channel[None, :], mask=inside[:, None] & (channel < DIM)[None, :], other=0.0)
    # 0.0 turns minus zero into zero.
    x = x.to(tl.float32).to(tl.float64) + 0.0
    if LOG > 0:
        x = hadamard(x, LOG) * NORM
    return x


@triton.jit
def pack_pages(
    key, value, centres, order, counts, starts, records, saturated, record_words,
    HEADS: tl.constexpr, S: tl.constexpr, LOG: tl.constexpr, NORM: tl.constexpr, VALUE_LOG: tl.constexpr,
    VALUE_NORM: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """N tokens of one page and KV head, far ones or pruned ones, into its record.

    Args:
        key, value: whole pages ``[n, P, H, D]`` and ``[n, P, H, Dv]`` in one piece each.
        centres: fp16 ``[n, H, D]``, of the keys.
        order: int64 ``[n, H, P]``, positions high first, then mid, low, pruned.
        counts: int64 ``[n, H, 4]``, keys and values with refinement in the far section, far tokens, the header's word.
        starts: int64 ``[n, H, 3]``, bytes where the head's sections start.
        saturated: int64, to which rows beyond fp16 are added.
    """
    KEY_BASE: tl.constexpr = S.key_base_bits
    VALUE_BASE: tl.constexpr = S.value_base_bits
    KEY_REFINE: tl.constexpr = S.key_refine_bits
    VALUE_REFINE: tl.constexpr = S.value_refine_bits
    pair, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    page, head = pair // HEADS, pair % HEADS
    kept_keys, kept_values = tl.load(counts + 4 * pair).to(tl.int32), tl.load(counts + 4 * pair + 1).to(tl.int32)
    far = tl.load(counts + 4 * pair + 2).to(tl.int32)
    base, fine = (tl.load(starts + 3 * pair) // 4).to(tl.int32), (tl.load(starts + 3 * pair + 1) // 4).to(tl.int32)
    near = (tl.load(starts + 3 * pair + 2) // 4).to(tl.int32)
    far_tiles = (far + (N - 1)) // N
    is_far = tile < far_tiles
    stop = tl.where(is_far, far, S.page_size - far)
    begin = tl.where(is_far, tile, tile - far_tiles) * N
    if (begin >= stop) | ((not S.near) & (tile >= far_tiles)):
        return
    token = begin + tl.arange(0, N)
    inside = token < stop
    position = tl.load(order + pair * S.page_size + tl.where(is_far, 0, far) + token, mask=inside, other=0)
    row = (page * S.page_size + position) * HEADS + head
    channel = tl.arange(0, S.pad)
    centre = (
        tl.load(centres + pair * S.head_dim + channel, mask=channel < S.head_dim, other=0.0)
        .to(tl.float32)
        .to(tl.float64)
    )
    moved = _rotated(key, row * S.head_dim, channel, inside, LOG, NORM, S.head_dim) - centre[None, :]
    keys, key_scale, key_zero, beyond = quantize(moved, inside, KEY_BASE, KEY_BASE + KEY_REFINE, S.head_dim)
    channel = tl.arange(0, S.v_pad)
    moved = _rotated(value, row * S.v_head_dim, channel, inside, VALUE_LOG, VALUE_NORM, S.v_head_dim)
    values, value_scale, value_zero, more = quantize(moved, inside, VALUE_BASE, VALUE_BASE + VALUE_REFINE, S.v_head_dim)
    if beyond + more > 0:
        tl.atomic_add(saturated, beyond + more, sem="relaxed")

    record = records + page * record_words
    far_keys, far_values, high_values = rec.far_runs(base, fine, kept_keys, far, S)
    low_values, pruned_scales, pruned_keys, pruned_values = rec.near_runs(near, kept_keys, kept_values, far, S)
    scale_at = record.to(tl.pointer_type(tl.float16)) + 2 * tl.where(is_far, base, pruned_scales) + token
    tl.store(scale_at, key_scale, mask=inside)
    tl.store(scale_at + stop, key_zero, mask=inside)
    tl.store(scale_at + 2 * stop, value_scale, mask=inside)
    tl.store(scale_at + 3 * stop, value_zero, mask=inside)
    key_at, value_at = tl.where(is_far, far_keys, pruned_keys), tl.where(is_far, far_values, pruned_values)
    store_keys(record, keys, 0, KEY_BASE, key_at, 0, stop, token, S)
    store_values(record, values, 0, VALUE_BASE, value_at, 0, stop, begin, S)
    # Refinement: of far tokens in two runs, far and near part; of pruned ones behind their base codes.
    split_keys, split = tl.where(is_far, kept_keys, stop), tl.where(is_far, kept_values, stop)
    fine_keys = tl.where(is_far, fine, pruned_keys + planes.key_words(KEY_BASE, stop, S))
    fine_values = tl.where(is_far, high_values, pruned_values + planes.value_words(VALUE_BASE, 0, stop, S))
    store_keys(record, keys, KEY_BASE, KEY_REFINE, fine_keys, 0, split_keys, token, S)
    store_values(record, values, VALUE_BASE, VALUE_REFINE, fine_values, 0, split, begin, S)
    if S.near:
        store_keys(record, keys, KEY_BASE, KEY_REFINE, near, split_keys, stop, token, S)
        store_values(record, values, VALUE_BASE, VALUE_REFINE, low_values, split, stop, begin, S)


@triton.jit
def write_headers(
    tiers, counts, starts, nbytes, records, record_words, level, HEADS: tl.constexpr, S: tl.constexpr, B: tl.constexpr
):
    """A KV head's words and tier map, and with the first head the record's own words."""
    pair = tl.program_id(0).to(tl.int64)
    page, head = pair // HEADS, pair % HEADS
    record = records + page * record_words
    store_head(record, head, tl.load(counts + 4 * pair + 3), starts + 3 * pair, S)
    store_tiers(record, head, tiers + pair * S.page_size, S, B)
    if head == 0:
        store_lengths(record, tl.load(nbytes + page), level, S)


def commit_pages(store: RecordStore, layer: int, pages: Tensor, raw: RawPages, tiers: Tensor, rotation: str) -> None:
    """See ``reference.commit.commit_pages``; the same bytes."""
    _, *came = (x.flatten(0, 1) for x in raw.full_pages())
    finite = [x.isfinite() for x in came]
    key, value = (x.masked_fill(~there, 0.0).contiguous() for x, there in zip(came, finite, strict=True))
    layout, (n, page, heads, dim) = store.layout, key.shape
    planes.check_planes(layout)
    if not n:
        return
    shape, logs = layout.shape, [rotation_log(width, rotation) for width in (dim, layout.v_head_dim)]
    tiers = tiers.reshape(n, heads, page).contiguous()
    centres = centre_of(key.transpose(1, 2), rotation).contiguous()
    by_tier = TierCounts.of(tiers)
    sections = layout.sections(by_tier)
    counts = torch.stack([*layout.refined(by_tier), by_tier.far, by_tier.word()], dim=2)
    starts, lengths = torch.stack(sections[:3], dim=2), sections.end.contiguous()
    order = torch.as_tensor(_RANK, device=tiers.device)[tiers.long()].argsort(dim=2, stable=True)
    records = torch.zeros(n, layout.record_bytes, dtype=torch.uint8, device=key.device)
    readable = torch.stack([there.transpose(1, 2).flatten(2).all(2) for there in finite]).all(0)
    halves = centres.masked_fill(~readable[..., None], float("nan")).view(torch.uint8).flatten(1)
    records[:, layout.centre_start : layout.centre_start + halves.shape[1]] = halves
    words, record_words = records.view(torch.int32), layout.record_bytes // 4
    args = (key, value, centres, order, counts, starts, words, store.out_of_range, record_words)
    # Constants of the kernel, for a float argument would be float32.
    rotations = (x for log in logs for x in (log, 1 / math.sqrt(1 << log)))
    launch(pack_pages, (n * heads, page // TOKENS + 1), (*args, heads, shape, *rotations, TOKENS), TILE.options)
    level = L.LEVEL_NEAR if layout.near else L.LEVEL_FAR
    headers = (tiers, counts, starts, lengths, words, record_words, level)
    launch(write_headers, (n * heads,), (*headers, heads, shape, triton.next_power_of_2(page // 4)), TILE.options)
    store.write(layer, pages, records, lengths)
    kept = kept_rows(tiers, layout)
    store.out_of_range[1:].add_(sum((~there.all(-1).transpose(1, 2) & kept).sum() for there in finite))
