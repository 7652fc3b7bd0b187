"""Writing of records in Triton kernels: from codes to planes, and the header. The counterpart of ``read.py``.

Records are written whole into memory of their own, so offsets need no translation.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from leankv_kernels import layout as L
from leankv_kernels.triton.record import HEAD_WORDS

_W_BLOCKS, _W_BYTES = tl.constexpr(L.W_BLOCKS), tl.constexpr(L.W_BYTES)
_W_LEVEL, _W_MAGIC = tl.constexpr(L.W_LEVEL), tl.constexpr(L.W_MAGIC)
_MAGIC = tl.constexpr(L.MAGIC)


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
        packed |= tl.load(tiers + i * (S.page_size // 4) + byte, mask=byte < S.page_size // 4, other=0) << (2 * i)
    at = (record + S.tier_map_word).to(tl.pointer_type(tl.uint8)) + head * (S.page_size // 4)
    tl.store(at + byte, packed, mask=byte < S.page_size // 4)


@triton.jit
def store_lengths(record, nbytes, level, S: tl.constexpr):
    """The record's own words, but for page, layer and block list, which are the store's to write."""
    block_bytes = 4 * S.block_words
    tl.store(record + _W_BLOCKS, ((nbytes + (block_bytes - 1)) // block_bytes).to(tl.int32))
    tl.store(record + _W_BYTES, nbytes.to(tl.int32))
    tl.store(record + _W_LEVEL, level)
    tl.store(record + _W_MAGIC, _MAGIC)
