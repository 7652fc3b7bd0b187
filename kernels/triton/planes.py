"""Planes of codes in Triton kernels: how long they are, where tokens lie in them, codes to planes and back to numbers.

All that depends on how wide a plane is, 4 bits for keys and 2 for values, is here, and in ``read.py`` how many planes
there are to put together. Codes become fp16 numbers ``1 + code / 256``: a code of 8 bits is laid into the mantissa of
1.0 by shifts and masks, two codes at once, with no conversion; bits that a tier does not keep are zero. A reader folds
scale, zero, bin centre and the 1 into one multiplication and one addition per token.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from functools import cache

import triton
import triton.language as tl

from leankv_kernels import layout as L
from leankv_kernels.layout import RecordLayout, key_planes, value_planes
from leankv_kernels.layout.format import KEY_PLANE, VALUE_PLANE

QUAD = tl.constexpr(L.VALUE_QUAD)
_GROUP = tl.constexpr(L.KEY_GROUP)
_KEY_PLANE, _VALUE_PLANE = tl.constexpr(KEY_PLANE), tl.constexpr(VALUE_PLANE)
_ONE = tl.constexpr(0x3C003C00)  # two fp16 ones


@cache
def check_planes(layout: RecordLayout) -> None:
    """Raise :class:`ValueError` for tiers whose planes nothing here is written for."""
    shape = layout.shape
    keys, values = (shape.key_base_bits, shape.key_refine_bits), (shape.value_base_bits, shape.value_refine_bits)
    if any(set(key_planes(bits)) - {KEY_PLANE} for bits in keys) or any(
        set(value_planes(bits)) - {VALUE_PLANE} for bits in values
    ):
        raise ValueError(f"the triton kernels are not written for planes of tiers {layout.high.name},{layout.low.name}")


# Where planes and what is in them lie, in 32-bit words


@triton.jit
def key_plane(tokens, S: tl.constexpr):
    """Words of a key plane of so many tokens."""
    return tokens * (S.head_dim // 8)


@triton.jit
def value_plane(first, stop, S: tl.constexpr):
    """Words of a value plane of tokens ``first`` to ``stop``."""
    quads = (stop + (QUAD - 1)) // QUAD - first // QUAD
    return tl.where(stop > first, quads, 0) * (S.v_head_dim // 4)


@triton.jit
def key_words(BITS: tl.constexpr, tokens, S: tl.constexpr):
    """Words of all planes that hold so many bits of so many keys."""
    return (BITS // _KEY_PLANE) * key_plane(tokens, S)


@triton.jit
def value_words(BITS: tl.constexpr, first, stop, S: tl.constexpr):
    """Words of all planes that hold so many bits of values ``first`` to ``stop``."""
    return (BITS // _VALUE_PLANE) * value_plane(first, stop, S)


@triton.jit
def key_place(start, first, stop, token, S: tl.constexpr):
    """Offset of the first word of tokens in a key plane that holds ``first`` to ``stop``, and on to the next one."""
    group = token // _GROUP * _GROUP
    begin = tl.maximum(group, first)
    width = tl.minimum(group + _GROUP, stop) - begin
    return start + (begin - first) * (S.head_dim // 8) + token - begin, width


@triton.jit
def value_place(start, first, quad, S: tl.constexpr):
    """Offset of the first word of quads in a value plane that begins with the quad of ``first``."""
    return start + (quad - first // QUAD) * (S.v_head_dim // 4)


# Codes to planes


@triton.jit
def store_keys(record, codes, SKIP: tl.constexpr, BITS: tl.constexpr, start, first, stop, token, S: tl.constexpr):
    """Bits of the codes ``[N, pad]`` of tokens, those below the top ``SKIP``, to the planes that hold ``first`` to
    ``stop``.
    """
    for plane in tl.static_range(BITS // _KEY_PLANE):
        below = 8 - SKIP - _KEY_PLANE * (plane + 1)
        at = start + plane * key_plane(stop - first, S)
        _store_key_plane(record, codes >> below, at, first, stop, token, S)


@triton.jit
def _store_key_plane(record, codes, start, first, stop, token, S: tl.constexpr):
    nibble = tl.reshape(codes & 15, (codes.shape[0], S.pad // 8, 8))
    words = tl.sum(nibble << (4 * tl.arange(0, 8))[None, None, :], 2)
    offset, step = key_place(start, first, stop, token, S)
    word = tl.arange(0, S.pad // 8)[None, :]
    mask = ((token >= first) & (token < stop))[:, None] & (word < S.head_dim // 8)
    tl.store(record + offset[:, None] + word * step[:, None], words, mask=mask)


@triton.jit
def store_values(record, codes, SKIP: tl.constexpr, BITS: tl.constexpr, start, first, stop, begin, S: tl.constexpr):
    """Bits of the codes ``[N, v_pad]`` of N tokens, whole quads, those below the top ``SKIP``, to the planes that hold
    ``first`` to ``stop``.
    """
    for plane in tl.static_range(BITS // _VALUE_PLANE):
        below = 8 - SKIP - _VALUE_PLANE * (plane + 1)
        at = start + plane * value_plane(first, stop, S)
        _store_value_plane(record, codes >> below, at, first, stop, begin, S)


@triton.jit
def _store_value_plane(record, codes, start, first, stop, begin, S: tl.constexpr):
    N: tl.constexpr = codes.shape[0]
    token = begin + tl.arange(0, N)
    kept = tl.where(((token >= first) & (token < stop))[:, None], codes & 3, 0)
    quads = tl.reshape(kept, (N // 4, 4, S.v_pad // 4, 4))
    shift = (2 * tl.arange(0, 4))[None, :, None, None] + (8 * tl.arange(0, 4))[None, None, None, :]
    words = tl.sum(tl.sum(quads << shift, 3), 1)
    quad, word = begin // QUAD + tl.arange(0, N // 4), tl.arange(0, S.v_pad // 4)[None, :]
    inside = (quad * QUAD < stop) & (quad * QUAD + QUAD > first) & (stop > first)
    at = record + value_place(start, first, quad, S)[:, None] + word
    tl.store(at, words, mask=inside[:, None] & (word < S.v_head_dim // 4))


# Planes to numbers


@triton.jit
def _move(word, RIGHT: tl.constexpr):
    if RIGHT >= 0:
        out = word >> RIGHT
    else:
        out = word << -RIGHT
    return out


@triton.jit
def _two_halves(pair):
    low = pair.to(tl.int16).to(tl.float16, bitcast=True)
    return low, (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _key_pair(top, next, TWO: tl.constexpr, CHANNEL: tl.constexpr):
    # Channels CHANNEL and CHANNEL + 4 of every word.
    pair = (_move(top, 4 * CHANNEL - 6) & 0x03C003C0) | _ONE
    if TWO:
        pair |= _move(next, 4 * CHANNEL - 2) & 0x003C003C
    return _two_halves(pair)


@triton.jit
def key_numbers(top, next, TWO: tl.constexpr):
    """``1 + code / 256`` of every channel, fp16 ``[pad, N]``, from words ``[pad / 8, N]`` of one or two planes.

    Channels come in the order of :func:`key_place_of`, in which pairs that share a register stay together.
    """
    c0, c4 = _key_pair(top, next, TWO, 0)
    c1, c5 = _key_pair(top, next, TWO, 1)
    c2, c6 = _key_pair(top, next, TWO, 2)
    c3, c7 = _key_pair(top, next, TWO, 3)
    # [word, token, which of a pair, low bit of the pair's number, its high bit]
    pairs = tl.join(tl.join(tl.join(c0, c4), tl.join(c1, c5)), tl.join(tl.join(c2, c6), tl.join(c3, c7)))
    return tl.reshape(tl.permute(pairs, (0, 4, 3, 2, 1)), (8 * top.shape[0], top.shape[1]))


@triton.jit
def key_place_of(channel):
    """Where :func:`key_numbers` has a channel."""
    return channel // 8 * 8 + channel % 4 * 2 + channel % 8 // 4


@triton.jit
def _value_pair(p0, p1, p2, p3, PLANES: tl.constexpr, TOKEN: tl.constexpr, CHANNEL: tl.constexpr):
    # Channels CHANNEL and CHANNEL + 2 of one token of every quad.
    pair = (_move(p0, 8 * CHANNEL + 2 * TOKEN - 8) & 0x03000300) | _ONE
    if PLANES > 1:
        pair |= _move(p1, 8 * CHANNEL + 2 * TOKEN - 6) & 0x00C000C0
    if PLANES > 2:
        pair |= _move(p2, 8 * CHANNEL + 2 * TOKEN - 4) & 0x00300030
        pair |= _move(p3, 8 * CHANNEL + 2 * TOKEN - 2) & 0x000C000C
    return _two_halves(pair)


@triton.jit
def _value_channels(p0, p1, p2, p3, PLANES: tl.constexpr, TOKEN: tl.constexpr):
    c0, c2 = _value_pair(p0, p1, p2, p3, PLANES, TOKEN, 0)
    c1, c3 = _value_pair(p0, p1, p2, p3, PLANES, TOKEN, 1)
    return tl.join(tl.join(c0, c2), tl.join(c1, c3))


@triton.jit
def value_numbers(p0, p1, p2, p3, PLANES: tl.constexpr):
    """``1 + code / 256`` of every channel, fp16 ``[tokens, pad]``, from words ``[quads, pad / 4]`` of 1, 2 or 4 planes.

    Channels come in the order of :func:`value_channel`, in which pairs that share a register stay together.
    """
    t0 = _value_channels(p0, p1, p2, p3, PLANES, 0)
    t1 = _value_channels(p0, p1, p2, p3, PLANES, 1)
    t2 = _value_channels(p0, p1, p2, p3, PLANES, 2)
    t3 = _value_channels(p0, p1, p2, p3, PLANES, 3)
    # [quad, word, which of a pair, pair, token's low bit, its high bit]
    tokens = tl.join(tl.join(t0, t1), tl.join(t2, t3))
    return tl.reshape(tl.permute(tokens, (0, 5, 4, 1, 3, 2)), (4 * p0.shape[0], 4 * p0.shape[1]))


@triton.jit
def value_channel(place):
    """The channel that :func:`value_numbers` has at a place."""
    return place // 4 * 4 + place % 4 // 2 + place % 2 * 2
