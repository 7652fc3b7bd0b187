"""Reading of records in Triton kernels: from codes in blocks to numbers for a matrix product.

A record lies over blocks, so every offset is translated by the block list in its header. Codes become fp16 numbers
``1 + code / 256``: a code of 8 bits is laid into the mantissa of 1.0 by shifts and masks, two codes at once, with no
conversion; bits that a tier does not keep are zero. A reader folds scale, zero, bin centre and the 1 into one
multiplication and one addition per token.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from leankv_kernels.triton.record import QUAD, key_place, key_plane, value_place, value_plane

_ONE = tl.constexpr(0x3C003C00)  # two fp16 ones


# Words


@triton.jit
def _pool(words, blocks, offset, mask, S: tl.constexpr):
    block = tl.load(blocks + (offset >> S.log_words), mask=mask, other=0)
    return words + block.to(tl.int64) * S.block_words + (offset & (S.block_words - 1))


@triton.jit
def _load_fours(words, blocks, offset, mask, S: tl.constexpr):
    """``[A, 4 B]`` words from offsets ``[A, B]`` at multiples of 16 bytes: one translation and one load for four."""
    at = tl.multiple_of(_pool(words, blocks, offset, mask, S), (16, 16))
    fours = at[:, :, None] + tl.arange(0, 4)[None, None, :]
    out = tl.load(fours, mask=tl.broadcast_to(mask[:, :, None], fours.shape), other=0)
    return tl.reshape(out, (offset.shape[0], 4 * offset.shape[1]))


@triton.jit
def _half(words, blocks, at, mask, S: tl.constexpr):
    half = _pool(words, blocks, at >> 1, mask, S).to(tl.pointer_type(tl.float16)) + (at & 1)
    return tl.load(half, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_scales(words, blocks, start, count, token, mask, S: tl.constexpr):
    """Key scale, key zero, value scale, value zero of tokens of a run of so many, float32."""
    at = 2 * start + token
    key_scale, key_zero = _half(words, blocks, at, mask, S), _half(words, blocks, at + count, mask, S)
    at += 2 * count
    return key_scale, key_zero, _half(words, blocks, at, mask, S), _half(words, blocks, at + count, mask, S)


@triton.jit
def load_centres(words, block, head, S: tl.constexpr):
    """The centres of a KV head's keys ``[pad, N]`` of N records by their first blocks, in fp16, in the order of
    :func:`key_place_of`.
    """
    place = tl.arange(0, S.pad)
    at = S.centre_half + head * S.dim + place // 8 * 8 + place % 8 // 2 + place % 2 * 4
    inside = tl.broadcast_to((place < S.dim)[:, None], (S.pad, block.shape[0]))
    blocks = words + (block.to(tl.int64) * S.block_words + S.list_word)[None, :]
    return _half(words, blocks, at[:, None], inside, S).to(tl.float16)


@triton.jit
def _key_words(words, blocks, start, first, stop, token, mask, S: tl.constexpr):
    word = tl.arange(0, S.pad // 8)[:, None]
    offset, step = key_place(start, first, stop, token, S)
    inside = mask[None, :] & (word < S.dim // 8)
    return tl.load(_pool(words, blocks, offset[None, :] + word * step[None, :], inside, S), mask=inside, other=0)


@triton.jit
def _whole_key_words(words, blocks, start, begin, S: tl.constexpr, N: tl.constexpr):
    # Whole groups start at multiples of 16 bytes.
    word = tl.arange(0, S.pad // 8)[:, None]
    offset, step = key_place(start, 0, begin + N, begin + 4 * tl.arange(0, N // 4), S)
    offset = offset[None, :] + word * step[None, :]
    return _load_fours(words, blocks, offset, tl.broadcast_to(word < S.dim // 8, offset.shape), S)


@triton.jit
def load_keys(words, blocks, start, stop, begin, S: tl.constexpr, N: tl.constexpr):
    """The words ``[pad / 8, N]`` of a step's tokens in a key plane that holds 0 to ``stop``; 0 behind it."""
    token = begin + tl.arange(0, N)
    if (S.dim % 32 == 0) & (begin + N <= stop):
        out = _whole_key_words(words, blocks, start, begin, S, N)
    else:
        out = _key_words(words, blocks, start, 0, stop, token, token < stop, S)
    return out


@triton.jit
def load_values(words, blocks, start, first, begin, below, S: tl.constexpr, N: tl.constexpr):
    """The words ``[N / 4, pad / 4]`` of a step's quads, four channels of four tokens each, in a value plane that begins
    with token ``first``; 0 for quads without a token from ``first`` on and below ``below``.
    """
    quad, four = begin // QUAD + tl.arange(0, N // QUAD), tl.arange(0, S.pad // 16)[None, :]
    inside = ((quad * QUAD < below) & (quad * QUAD + QUAD > first))[:, None] & (four < S.dim // 16)
    return _load_fours(words, blocks, value_place(start, first, quad, S)[:, None] + 4 * four, inside, S)


# Codes to numbers


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


# Tokens of a run, a step of N at a time. Far tokens are refined up to ``split`` in one plane, from there on, where they
# are refined at all, in the near part's plane for low tokens; pruned ones all in one plane.


@triton.jit
def read_keys(words, blocks, at, fine_at, low_at, split, refined, stop, far, begin, S: tl.constexpr, N: tl.constexpr):
    """Numbers of the keys of a step's tokens, fp16 ``[pad, N]``; 1 behind ``stop``."""
    top = load_keys(words, blocks, at, stop, begin, S, N)
    if S.key_base == 2:
        next = load_keys(words, blocks, at + key_plane(stop, S), stop, begin, S, N)
        out = key_numbers(top, next, True)
    elif S.key_fine == 1:
        if begin < refined:
            next = _fine_keys(words, blocks, fine_at, low_at, split, refined, far, begin, S, N)
            out = key_numbers(top, next, True)
        else:
            out = key_numbers(top, top, False)
    else:
        out = key_numbers(top, top, False)
    return out


@triton.jit
def _fine_keys(words, blocks, fine_at, low_at, split, refined, far, begin, S: tl.constexpr, N: tl.constexpr):
    token = begin + tl.arange(0, N)
    low = token >= split
    start, first, stop = tl.where(low, low_at, fine_at), tl.where(low, split, 0), tl.where(low, far, split)
    return _key_words(words, blocks, start, first, stop, token, token < refined, S)


@triton.jit
def read_values(words, blocks, at, fine_at, low_at, split, refined, stop, far, begin, S: tl.constexpr, N: tl.constexpr):
    """Numbers of the values of a step's tokens, fp16 ``[N, pad]``; 1 behind ``stop``."""
    plane = value_plane(0, stop, S)
    p0 = load_values(words, blocks, at, 0, begin, stop, S, N)
    if S.value_base == 4:
        p1 = load_values(words, blocks, at + plane, 0, begin, stop, S, N)
        p2 = load_values(words, blocks, at + 2 * plane, 0, begin, stop, S, N)
        p3 = load_values(words, blocks, at + 3 * plane, 0, begin, stop, S, N)
        out = value_numbers(p0, p1, p2, p3, 4)
    elif S.value_base == 2:
        p1 = load_values(words, blocks, at + plane, 0, begin, stop, S, N)
        if S.value_fine == 2:
            if begin < refined:
                p2 = _fine_values(words, blocks, fine_at, low_at, split, refined, far, begin, 0, S, N)
                p3 = _fine_values(words, blocks, fine_at, low_at, split, refined, far, begin, 1, S, N)
                out = value_numbers(p0, p1, p2, p3, 4)
            else:
                out = value_numbers(p0, p1, p1, p1, 2)
        else:
            out = value_numbers(p0, p1, p1, p1, 2)
    elif S.value_fine == 1:
        if begin < refined:
            p1 = _fine_values(words, blocks, fine_at, low_at, split, refined, far, begin, 0, S, N)
            out = value_numbers(p0, p1, p1, p1, 2)
        else:
            out = value_numbers(p0, p0, p0, p0, 1)
    else:
        out = value_numbers(p0, p0, p0, p0, 1)
    return out


@triton.jit
def _fine_values(
    words, blocks, fine_at, low_at, split, refined, far, begin, PLANE: tl.constexpr, S: tl.constexpr, N: tl.constexpr
):
    start = fine_at + PLANE * value_plane(0, split, S)
    out = load_values(words, blocks, start, 0, begin, tl.minimum(split, refined), S, N)
    if refined > split:
        # A quad that both planes share has zeros in each where the other's tokens are.
        start = low_at + PLANE * value_plane(split, far, S)
        out |= load_values(words, blocks, start, split, begin, refined, S, N)
    return out
