"""Encode and decode whole records as bytes: the only code besides the fast kernels that follows the layout."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels import layout as L
from leankv_kernels.layout import HIGH, LOW, PRUNED, RecordLayout
from leankv_kernels.reference.codec import MASTER_BITS, bin_centre, pack, quantize, unpack

_UNIT = 4  # every row starts and ends at a multiple of four bytes, so rows move as int32


class Header(NamedTuple):
    """The parsed headers of n records; integer tensors."""

    page: Tensor  # [n]
    layer: Tensor  # [n]
    blocks: Tensor  # [n] blocks held
    nbytes: Tensor  # [n] bytes held, before padding to whole blocks
    level: Tensor  # [n] one of LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR
    block_list: Tensor  # [n, max_blocks], zero behind ``blocks``
    high: Tensor  # [n, H]
    low: Tensor  # [n, H]


class View(NamedTuple):
    """What n records say at every position: a channel is ``code * scale + zero``; nothing is read where not valid."""

    key: Tensor  # uint8 [n, H, P, D], top bits of the master code
    key_scale: Tensor  # float64 [n, H, P]
    key_zero: Tensor
    value: Tensor
    value_scale: Tensor
    value_zero: Tensor
    valid: Tensor  # bool [n, H, P], False where pruned

    def keys(self) -> Tensor:
        """Dequantized (still rotated) keys, float64 ``[n, H, P, D]``, zero where pruned."""
        return _dequantize(self.key, self.key_scale, self.key_zero, self.valid)

    def values(self) -> Tensor:
        """Dequantized (still rotated) values, float64 ``[n, H, P, D]``, zero where pruned."""
        return _dequantize(self.value, self.value_scale, self.value_zero, self.valid)


def _dequantize(codes: Tensor, scale: Tensor, zero: Tensor, valid: Tensor) -> Tensor:
    x = codes.to(torch.float64) * scale[..., None] + zero[..., None]
    return x.masked_fill(~valid[..., None], 0.0)


def _row_index(offset: Tensor, row: int) -> Tensor:
    unit = torch.arange(row // _UNIT, device=offset.device)
    return (offset[..., None] // _UNIT + unit).flatten(1)


@lru_cache(maxsize=32)
def _row_words(layout: RecordLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each int32 word of a token's rows, kinds one after the other: its kind, and its number within the row."""
    sizes = [row // _UNIT for row in layout.row_bytes]
    kind = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return kind.to(device), torch.cat([torch.arange(size) for size in sizes]).to(device)


def encode(key: Tensor, value: Tensor, tiers: Tensor, layout: RecordLayout) -> tuple[Tensor, Tensor]:
    """Records of n pages, complete but for page, layer and block list (the store writes those).

    Args:
        key, value: rotated, float64 ``[n, H, P, D]``.
        tiers: integers ``[n, H, P]``.

    Returns:
        bytes uint8 ``[n, record_bytes]`` and their lengths int64 ``[n]``.
    """
    n = key.shape[0]
    k_code, k_scale, k_zero = quantize(key)
    v_code, v_scale, v_zero = quantize(value)
    scales = torch.stack([k_scale, k_zero, v_scale, v_zero], dim=-1).view(torch.uint8)
    low, high = layout.low, layout.high

    def cut(codes: Tensor, have: int, drop: int) -> Tensor:
        return pack((codes >> (MASTER_BITS - have)) & ((1 << (have - drop)) - 1), have - drop)

    rows = [
        scales,
        cut(k_code, low.key_bits, 0),
        cut(v_code, low.value_bits, 0),
        cut(k_code, high.key_bits, low.key_bits),
        cut(v_code, high.value_bits, low.value_bits),
    ]
    # One spare row behind the record takes the writes of rows that are not kept.
    spare = max(layout.row_bytes)
    out = torch.zeros(n, layout.record_bytes + spare, dtype=torch.uint8, device=key.device)
    words = out.view(torch.int32)
    for row, offset in zip(rows, layout.row_offsets(tiers), strict=True):
        if row.shape[-1]:
            at = torch.where(offset < 0, layout.record_bytes, offset)
            data = row.contiguous().view(torch.int32).flatten(1)
            words.scatter_(1, _row_index(at, row.shape[-1]), data)
    out = out[:, : layout.record_bytes].contiguous()
    return out, _write_header(out, tiers, layout)


def _write_header(out: Tensor, tiers: Tensor, layout: RecordLayout) -> Tensor:
    words = out.view(torch.int32)
    n_high, n_low = (tiers == HIGH).sum(2), (tiers == LOW).sum(2)
    s = layout.sections(n_high, n_low)
    nbytes = s.end
    words[:, L.W_BYTES] = nbytes.int()
    words[:, L.W_BLOCKS] = -(-nbytes // layout.block_bytes).int()
    words[:, L.W_LEVEL] = L.LEVEL_NEAR if layout.near else L.LEVEL_FAR
    words[:, L.W_MAGIC] = L.MAGIC
    heads = torch.stack([n_high + (n_low << 16), s.base, s.refine, s.near], dim=-1).int().flatten(1)
    words[:, layout.head_word : layout.head_word + heads.shape[1]] = heads
    maps = pack(tiers.to(torch.uint8), 2).flatten(1)
    out[:, layout.tier_map_start : layout.tier_map_start + maps.shape[1]] = maps
    return nbytes


def read_header(records: Tensor, layout: RecordLayout) -> Header:
    """Parse the headers of records uint8 ``[n, >= header_bytes up to the heads]``."""
    words = records.view(torch.int32)
    blocks = words[:, layout.list_word : layout.list_word + layout.max_blocks]
    counts = words[:, layout.head_word : layout.head_word + L.HEAD_WORDS * layout.num_kv_heads : L.HEAD_WORDS]
    return Header(
        words[:, L.W_PAGE],
        words[:, L.W_LAYER],
        words[:, L.W_BLOCKS],
        words[:, L.W_BYTES],
        words[:, L.W_LEVEL],
        blocks,
        (counts & 0xFFFF).long(),
        (counts >> 16).long(),
    )


def read_tiers(records: Tensor, layout: RecordLayout) -> Tensor:
    """Tier maps as uint8 ``[n, H, P]``."""
    size = layout.num_kv_heads * layout.tier_map_bytes
    maps = records[:, layout.tier_map_start : layout.tier_map_start + size]
    return unpack(maps.unflatten(1, (layout.num_kv_heads, layout.tier_map_bytes)), 2, layout.page_size)


def decode(records: Tensor, layout: RecordLayout, near: Tensor | bool) -> View:
    """Read n records, each at its near view (every token high) or its far view (tiers as committed).

    A record cut to its base codes is read with every far token low. The near view needs an uncut record.

    Args:
        records: uint8 ``[n, record_bytes]``, contiguous.
        near: one for all, or bool ``[n]``.
    """
    if isinstance(near, bool):
        near = torch.full((len(records),), near, device=records.device)
    tiers = read_tiers(records, layout)
    offsets = torch.stack(layout.row_offsets(tiers)).clamp_(min=0)
    level = records.view(torch.int32)[:, L.W_LEVEL]
    whole = near[:, None, None]
    fine = whole | ((tiers == HIGH) & (level >= L.LEVEL_FAR)[:, None, None])
    valid = whole | (tiers != PRUNED)
    # All rows of a token in one gather: word i of the five kinds of rows, one after the other.
    sizes = [row // _UNIT for row in layout.row_bytes]
    kind, word = _row_words(layout, records.device)
    index = (offsets // _UNIT).permute(1, 2, 3, 0)[..., kind] + word
    words = records.view(torch.int32).gather(1, index.flatten(1)).view(index.shape)
    scale, k_base, v_base, k_refine, v_refine = (part.view(torch.uint8) for part in words.split(sizes, dim=-1))
    ks, kz, vs, vz = scale.view(torch.float16).to(torch.float64).unbind(-1)

    def field(base: Tensor, refine: Tensor, low: int, high: int) -> tuple[Tensor, Tensor | int, Tensor | float]:
        codes = unpack(base, low, layout.head_dim)
        step, centre = bin_centre(low)
        if low == high:
            return codes, step, centre
        finer = (codes << (high - low)) | unpack(refine, high - low, layout.head_dim)
        fine_step, fine_centre = bin_centre(high)
        codes = torch.where(fine[..., None], finer, codes)
        return codes, torch.where(fine, fine_step, step), torch.where(fine, fine_centre, centre).to(torch.float64)

    key, k_step, k_centre = field(k_base, k_refine, layout.low.key_bits, layout.high.key_bits)
    value, v_step, v_centre = field(v_base, v_refine, layout.low.value_bits, layout.high.value_bits)
    return View(key, ks * k_step, kz + ks * k_centre, value, vs * v_step, vz + vs * v_centre, valid)


def cut(records: Tensor, layout: RecordLayout, level: int) -> Tensor:
    """Records with their tails cut down to ``level`` (bytes behind the cut zeroed); trim and demote in byte form.

    Raises:
        ValueError: for an unknown level.
    """
    if level not in (L.LEVEL_BASE, L.LEVEL_FAR, L.LEVEL_NEAR):
        raise ValueError(f"level {level} is not one of 1 (base), 2 (far), 3 (near)")
    out = records.clone()
    header = read_header(out, layout)
    kept = torch.minimum(header.level, torch.full_like(header.level, level))
    nbytes = layout.level_bytes(header.high, header.low, kept)
    words = out.view(torch.int32)
    words[:, L.W_LEVEL] = kept
    words[:, L.W_BYTES] = nbytes.int()
    words[:, L.W_BLOCKS] = -(-nbytes // layout.block_bytes).int()
    behind = torch.arange(out.shape[1], device=out.device) >= nbytes[:, None]
    return out.masked_fill_(behind, 0)
