"""Writing of records in Triton kernels: from codes to planes, and the header. The counterpart of ``read.py``.

Records are written whole into memory of their own, so offsets need no translation.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from leankv_kernels import layout as L
from leankv_kernels.triton.record import HEAD_WORDS, QUAD, key_place, value_place

_W_BLOCKS, _W_BYTES = tl.constexpr(L.W_BLOCKS), tl.constexpr(L.W_BYTES)
_W_LEVEL, _W_MAGIC = tl.constexpr(L.W_LEVEL), tl.constexpr(L.W_MAGIC)
_MAGIC = tl.constexpr(L.MAGIC)


@triton.jit
def store_keys(record, codes, SHIFT: tl.constexpr, start, first, stop, token, S: tl.constexpr):
    """The nibbles at SHIFT of the codes ``[N, pad]`` of tokens, into a key plane that holds ``first`` to ``stop``."""
    nibble = tl.reshape((codes >> SHIFT) & 15, (codes.shape[0], S.pad // 8, 8))
    words = tl.sum(nibble << (4 * tl.arange(0, 8))[None, None, :], 2)
    offset, step = key_place(start, first, stop, token, S)
    word = tl.arange(0, S.pad // 8)[None, :]
    mask = ((token >= first) & (token < stop))[:, None] & (word < S.dim // 8)
    tl.store(record + offset[:, None] + word * step[:, None], words, mask=mask)


@triton.jit
def store_values(record, codes, SHIFT: tl.constexpr, start, first, stop, begin, S: tl.constexpr):
    """The two bits at SHIFT of the codes ``[N, pad]`` of N tokens, whole quads, into a value plane that holds ``first``
    to ``stop``.
    """
    N: tl.constexpr = codes.shape[0]
    token = begin + tl.arange(0, N)
    kept = tl.where(((token >= first) & (token < stop))[:, None], (codes >> SHIFT) & 3, 0)
    quads = tl.reshape(kept, (N // 4, 4, S.pad // 4, 4))
    shift = (2 * tl.arange(0, 4))[None, :, None, None] + (8 * tl.arange(0, 4))[None, None, None, :]
    words = tl.sum(tl.sum(quads << shift, 3), 1)
    quad, word = begin // QUAD + tl.arange(0, N // 4), tl.arange(0, S.pad // 4)[None, :]
    inside = (quad * QUAD < stop) & (quad * QUAD + QUAD > first) & (stop > first)
    at = record + value_place(start, first, quad, S)[:, None] + word
    tl.store(at, words, mask=inside[:, None] & (word < S.dim // 4))


@triton.jit
def store_head(record, head, word, starts, S: tl.constexpr):
    """The counts of a KV head in one word, and the bytes where its three sections start."""
    at = record + S.head_word + HEAD_WORDS * head
    tl.store(at, word.to(tl.int32))
    for i in tl.static_range(3):
        tl.store(at + 1 + i, tl.load(starts + i).to(tl.int32))


@triton.jit
def store_tiers(record, head, tiers, S: tl.constexpr, B: tl.constexpr):
    """The tier map of a KV head, ``B`` being its bytes up to a power of two."""
    byte = tl.arange(0, B)
    packed = tl.full((B,), 0, tl.uint8)
    for i in tl.static_range(4):
        packed |= tl.load(tiers + i * (S.page // 4) + byte, mask=byte < S.page // 4, other=0) << (2 * i)
    at = (record + S.tier_map_word).to(tl.pointer_type(tl.uint8)) + head * (S.page // 4)
    tl.store(at + byte, packed, mask=byte < S.page // 4)


@triton.jit
def store_lengths(record, nbytes, level, S: tl.constexpr):
    """The record's own words, but for page, layer and block list, which are the store's to write."""
    block_bytes = 4 * S.block_words
    tl.store(record + _W_BLOCKS, ((nbytes + (block_bytes - 1)) // block_bytes).to(tl.int32))
    tl.store(record + _W_BYTES, nbytes.to(tl.int32))
    tl.store(record + _W_LEVEL, level)
    tl.store(record + _W_MAGIC, _MAGIC)
