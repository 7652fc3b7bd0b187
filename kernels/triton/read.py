"""Reading of records in Triton kernels: from codes in blocks to numbers for a matrix product.

A record lies over blocks, so every offset is translated by the block list in its header. What planes hold becomes
numbers in ``planes.py``.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from leankv_kernels.triton.planes import (
    QUAD,
    key_numbers,
    key_place,
    key_plane,
    value_numbers,
    value_place,
    value_plane,
)

# Words


@triton.jit
def _pool(words, blocks, offset, mask, S: tl.constexpr):
    block = tl.load(blocks + (offset >> S.word_shift), mask=mask, other=0)
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
    at = S.centre_half + head * S.head_dim + place // 8 * 8 + place % 8 // 2 + place % 2 * 4
    inside = tl.broadcast_to((place < S.head_dim)[:, None], (S.pad, block.shape[0]))
    blocks = words + (block.to(tl.int64) * S.block_words + S.list_word)[None, :]
    return _half(words, blocks, at[:, None], inside, S).to(tl.float16)


@triton.jit
def _key_words(words, blocks, start, first, stop, token, mask, S: tl.constexpr):
    word = tl.arange(0, S.pad // 8)[:, None]
    offset, step = key_place(start, first, stop, token, S)
    inside = mask[None, :] & (word < S.head_dim // 8)
    return tl.load(_pool(words, blocks, offset[None, :] + word * step[None, :], inside, S), mask=inside, other=0)


@triton.jit
def _whole_key_words(words, blocks, start, begin, S: tl.constexpr, N: tl.constexpr):
    # Whole groups start at multiples of 16 bytes.
    word = tl.arange(0, S.pad // 8)[:, None]
    offset, step = key_place(start, 0, begin + N, begin + 4 * tl.arange(0, N // 4), S)
    offset = offset[None, :] + word * step[None, :]
    return _load_fours(words, blocks, offset, tl.broadcast_to(word < S.head_dim // 8, offset.shape), S)


@triton.jit
def load_keys(words, blocks, start, stop, begin, S: tl.constexpr, N: tl.constexpr):
    """The words ``[pad / 8, N]`` of a step's tokens in a key plane that holds 0 to ``stop``; 0 behind it."""
    token = begin + tl.arange(0, N)
    if (S.head_dim % 32 == 0) & (begin + N <= stop):
        out = _whole_key_words(words, blocks, start, begin, S, N)
    else:
        out = _key_words(words, blocks, start, 0, stop, token, token < stop, S)
    return out


@triton.jit
def load_values(words, blocks, start, first, begin, below, S: tl.constexpr, N: tl.constexpr):
    """The words ``[N / 4, v_pad / 4]`` of a step's quads, four channels of four tokens each, in a value plane that
    begins with token ``first``; 0 for quads without a token from ``first`` on and below ``below``.
    """
    quad, four = begin // QUAD + tl.arange(0, N // QUAD), tl.arange(0, S.v_pad // 16)[None, :]
    inside = ((quad * QUAD < below) & (quad * QUAD + QUAD > first))[:, None] & (four < S.v_head_dim // 16)
    return _load_fours(words, blocks, value_place(start, first, quad, S)[:, None] + 4 * four, inside, S)


# Tokens of a run, a step of N at a time. Far tokens are refined up to ``split`` in one plane, from there on, where they
# are refined at all, in the near part's plane for low tokens; pruned ones all in one plane.


@triton.jit
def read_keys(words, blocks, at, fine_at, low_at, split, refined, stop, far, begin, S: tl.constexpr, N: tl.constexpr):
    """Numbers of the keys of a step's tokens, fp16 ``[pad, N]``; 1 behind ``stop``."""
    top = load_keys(words, blocks, at, stop, begin, S, N)
    if S.key_base_bits == 8:
        next = load_keys(words, blocks, at + key_plane(stop, S), stop, begin, S, N)
        out = key_numbers(top, next, True)
    elif S.key_refine_bits == 4:
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
    """Numbers of the values of a step's tokens, fp16 ``[N, v_pad]``; 1 behind ``stop``."""
    plane = value_plane(0, stop, S)
    p0 = load_values(words, blocks, at, 0, begin, stop, S, N)
    if S.value_base_bits == 8:
        p1 = load_values(words, blocks, at + plane, 0, begin, stop, S, N)
        p2 = load_values(words, blocks, at + 2 * plane, 0, begin, stop, S, N)
        p3 = load_values(words, blocks, at + 3 * plane, 0, begin, stop, S, N)
        out = value_numbers(p0, p1, p2, p3, 4)
    elif S.value_base_bits == 4:
        p1 = load_values(words, blocks, at + plane, 0, begin, stop, S, N)
        if S.value_refine_bits == 4:
            if begin < refined:
                p2 = _fine_values(words, blocks, fine_at, low_at, split, refined, far, begin, 0, S, N)
                p3 = _fine_values(words, blocks, fine_at, low_at, split, refined, far, begin, 1, S, N)
                out = value_numbers(p0, p1, p2, p3, 4)
            else:
                out = value_numbers(p0, p1, p1, p1, 2)
        else:
            out = value_numbers(p0, p1, p1, p1, 2)
    elif S.value_refine_bits == 2:
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
