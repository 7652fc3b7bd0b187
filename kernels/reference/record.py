"""Encode and decode whole records as bytes: the only code besides the fast kernels that follows the layout.

It asks the layout for the planes of a code and their widths, so it takes every format that the layout has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels import layout as L
from leankv_kernels.layout import (
    HIGH,
    MASTER_BITS,
    MID,
    PRUNED,
    Header,
    Places,
    RecordLayout,
    Span,
    TierCounts,
    bin_centre,
    read_header,
)
from leankv_kernels.reference.codec import centre_of, pack, quantize, unpack

__all__ = ["Header", "View", "cut", "decode", "encode", "read_centres", "read_header", "read_tiers"]


class View(NamedTuple):
    """What n records say at every position: a channel is ``code * scale + zero``, of a key plus its centre; nothing is
    read where not valid."""

    key: Tensor  # uint8 [n, H, P, D], top bits of the master code
    key_scale: Tensor  # float64 [n, H, P]
    key_zero: Tensor
    value: Tensor  # uint8 [n, H, P, Dv]
    value_scale: Tensor
    value_zero: Tensor
    valid: Tensor  # bool [n, H, P], False where pruned
    key_centre: Tensor  # float64 [n, H, D]

    def keys(self) -> Tensor:
        """Dequantized (still rotated) keys, float64 ``[n, H, P, D]``, zero where pruned."""
        keys = _dequantize(self.key, self.key_scale, self.key_zero, self.valid)
        return keys + self.key_centre[:, :, None] * self.valid[..., None]

    def values(self) -> Tensor:
        """Dequantized (still rotated) values, float64 ``[n, H, P, Dv]``, zero where pruned."""
        return _dequantize(self.value, self.value_scale, self.value_zero, self.valid)


def _dequantize(codes: Tensor, scale: Tensor, zero: Tensor, valid: Tensor) -> Tensor:
    x = codes.to(torch.float64) * scale[..., None] + zero[..., None]
    return x.masked_fill(~valid[..., None], 0.0)


# A word of a key plane: as many bytes as a code has bits there.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def _split(codes: Tensor, spans: list[Span]) -> list[Tensor]:
    """The top bits of master codes, plane by plane."""
    planes, left = [], MASTER_BITS
    for span in spans:
        left -= span.width
        planes.append((codes >> left) & ((1 << span.width) - 1))
    return planes


def _key_words(span: Span, token: Tensor, layout: RecordLayout) -> Tensor:
    """Numbers ``[n, H, P, D / 8]``, counted in words, of every token's words of one key plane."""
    word = torch.arange(layout.head_dim // L.KEY_WORD, device=token.device)
    return span.for_each().key_word(token[..., None], word, layout.head_dim) // span.width


def _nibbles(span: Span, device: torch.device) -> Tensor:
    """Where in a word of a key plane each channel has its code."""
    return span.width * torch.arange(L.KEY_WORD, device=device, dtype=torch.int32)


def _value_bytes(span: Span, token: Tensor, layout: RecordLayout) -> Tensor:
    """Byte offsets ``[n, H, P, Dv]`` of every token's codes of one value plane."""
    channel = torch.arange(layout.v_head_dim, device=token.device)
    return span.for_each().value_byte(token[..., None], channel, layout.v_head_dim)


def _value_shift(span: Span, token: Tensor) -> Tensor:
    """Where in a byte of a value plane each token has its codes, uint8 ``[n, H, P, 1]``."""
    return (span.width * (token % span.share)[..., None]).to(torch.uint8)


def _scale_halves(places: Places) -> Tensor:
    """Numbers ``[n, H, P, 4]`` of the fp16 words that hold key scale, key zero, value scale, value zero."""
    return (places.scale[..., None] + places.scale_stride[..., None] * torch.arange(4, device=places.scale.device)) // 2


def encode(
    key: Tensor,
    value: Tensor,
    tiers: Tensor,
    layout: RecordLayout,
    centre: Tensor | None = None,
    readable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Records of n pages, complete but for page, layer and block list (the store writes those).

    Args:
        key, value: rotated, float64 ``[n, H, P, D]`` and ``[n, H, P, Dv]``.
        tiers: integers ``[n, H, P]``.
        centre: of the keys, float16 ``[n, H, D]``; by default what ``centre_of`` makes of them as they are.
        readable: bool ``[n, H]``, where not all that is read of a KV head shall be NaN; by default everywhere.

    Returns:
        bytes uint8 ``[n, record_bytes]`` and their lengths int64 ``[n]``.
    """
    n = key.shape[0]
    if centre is None:
        centre = centre_of(key, "none")
    low, high = layout.low, layout.high
    k_code, k_scale, k_zero = quantize(key - centre.to(torch.float64)[:, :, None], (low.key_bits, high.key_bits))
    v_code, v_scale, v_zero = quantize(value, (low.value_bits, high.value_bits))
    # Spare bytes behind the record take the writes of what is not kept.
    out = torch.zeros(n, layout.record_bytes + 16, dtype=torch.uint8, device=key.device)
    places = layout.places(tiers)

    def put(view: Tensor, at: Tensor, data: Tensor, unit: int) -> None:
        at = torch.where(at < 0, layout.record_bytes // unit, at).flatten(1)
        view.scatter_add_(1, at, data.flatten(1))

    scales = torch.stack([k_scale, k_zero, v_scale, v_zero], dim=-1)
    put(out.view(torch.int16), _scale_halves(places), scales.view(torch.int16), 2)
    for span, codes in zip(places.key, _split(k_code, places.key), strict=True):
        words = (codes.unflatten(-1, (-1, L.KEY_WORD)).long() << _nibbles(span, key.device)).sum(-1)
        form = _WORDS[span.width]
        put(out.view(form), _key_words(span, places.token, layout), words.to(form), span.width)
    for span, codes in zip(places.value, _split(v_code, places.value), strict=True):
        put(out, _value_bytes(span, places.token, layout), codes << _value_shift(span, places.token), 1)
    out = out[:, : layout.record_bytes].contiguous()
    if readable is not None:
        centre = centre.masked_fill(~readable[..., None], float("nan"))
    centres = centre.contiguous().view(torch.uint8).flatten(1)
    out[:, layout.centre_start : layout.centre_start + centres.shape[1]] = centres
    return out, _write_header(out, tiers, layout)


def _write_header(out: Tensor, tiers: Tensor, layout: RecordLayout) -> Tensor:
    words = out.view(torch.int32)
    counts = TierCounts.of(tiers)
    s = layout.sections(counts)
    nbytes = s.end
    words[:, L.W_BYTES] = nbytes.int()
    words[:, L.W_BLOCKS] = -(-nbytes // layout.block_bytes).int()
    words[:, L.W_LEVEL] = L.LEVEL_NEAR if layout.near else L.LEVEL_FAR
    words[:, L.W_MAGIC] = L.MAGIC
    heads = torch.stack([counts.word(), s.base, s.refine, s.near], dim=-1).int().flatten(1)
    words[:, layout.head_word : layout.head_word + heads.shape[1]] = heads
    maps = pack(tiers.to(torch.uint8), L.TIER_BITS).flatten(1)
    out[:, layout.tier_map_start : layout.tier_map_start + maps.shape[1]] = maps
    return nbytes


def read_tiers(records: Tensor, layout: RecordLayout) -> Tensor:
    """Tier maps as uint8 ``[n, H, P]``."""
    size = layout.num_kv_heads * layout.tier_map_bytes
    maps = records[:, layout.tier_map_start : layout.tier_map_start + size]
    return unpack(maps.unflatten(1, (layout.num_kv_heads, layout.tier_map_bytes)), L.TIER_BITS, layout.page_size)


def read_centres(records: Tensor, layout: RecordLayout) -> Tensor:
    """Centres of the keys, float64 ``[n, H, D]``."""
    end = layout.centre_start + layout.num_kv_heads * layout.centre_bytes
    halves = records[:, layout.centre_start : end].contiguous().view(torch.float16)
    return halves.unflatten(1, (layout.num_kv_heads, -1)).to(torch.float64)


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
    places = layout.places(tiers)
    level = records.view(torch.int32)[:, L.W_LEVEL]
    whole, kept = near[:, None, None], (level >= L.LEVEL_FAR)[:, None, None]
    fine_key, fine_value = (
        whole | (kept & ((tiers == HIGH) | (mid & (tiers == MID))))
        for mid in (layout.mid_keys_fine, layout.mid_values_fine)
    )
    valid = whole | (tiers != PRUNED)

    def get(view: Tensor, at: Tensor) -> Tensor:
        # What is not kept reads as zero, from the header's spare words.
        at = torch.where(at < 0, 4 * L.W_SPARE // view.element_size(), at)
        return view.gather(1, at.flatten(1)).view(at.shape)

    scales = get(records.view(torch.int16), _scale_halves(places)).view(torch.float16)
    ks, kz, vs, vz = scales.to(torch.float64).unbind(-1)

    def key_plane(span: Span) -> Tensor:
        words = get(records.view(_WORDS[span.width]), _key_words(span, places.token, layout))
        codes = (words[..., None] >> _nibbles(span, words.device)) & ((1 << span.width) - 1)
        return codes.flatten(-2).to(torch.uint8)

    def value_plane(span: Span) -> Tensor:
        held = get(records, _value_bytes(span, places.token, layout))
        return (held >> _value_shift(span, places.token)) & ((1 << span.width) - 1)

    def field(
        read: Callable[[Span], Tensor], spans: list[Span], base: int, low: int, high: int, fine: Tensor
    ) -> tuple[Tensor, Tensor | int, Tensor | float]:
        codes = read(spans[0])
        for span in spans[1:base]:
            codes = (codes << span.width) | read(span)
        step, centre = bin_centre(low)
        if low == high:
            return codes, step, centre
        finer = codes
        for span in spans[base:]:
            finer = (finer << span.width) | read(span)
        fine_step, fine_centre = bin_centre(high)
        codes = torch.where(fine[..., None], finer, codes)
        return codes, torch.where(fine, fine_step, step), torch.where(fine, fine_centre, centre).to(torch.float64)

    low, high = layout.low, layout.high
    base_keys, base_values = len(L.key_planes(low.key_bits)), len(L.value_planes(low.value_bits))
    key, k_step, k_centre = field(key_plane, places.key, base_keys, low.key_bits, high.key_bits, fine_key)
    value, v_step, v_centre = field(value_plane, places.value, base_values, low.value_bits, high.value_bits, fine_value)
    centres = read_centres(records, layout)
    return View(key, ks * k_step, kz + ks * k_centre, value, vs * v_step, vz + vs * v_centre, valid, centres)


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
    nbytes = layout.level_bytes(header.counts, kept)
    words = out.view(torch.int32)
    words[:, L.W_LEVEL] = kept
    words[:, L.W_BYTES] = nbytes.int()
    words[:, L.W_BLOCKS] = -(-nbytes // layout.block_bytes).int()
    behind = torch.arange(out.shape[1], device=out.device) >= nbytes[:, None]
    return out.masked_fill_(behind, 0)
