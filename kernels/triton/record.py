"""Where things lie in a record, for Triton kernels: with ``read.py`` the only Triton code that knows the layout.

``leankv_kernels.layout`` is the text this follows. Offsets are counted in 32-bit words from a record's start.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from leankv_kernels import layout as L
from leankv_kernels.layout import RecordLayout
from leankv_kernels.reference.codec import bin_centre

_GROUP = tl.constexpr(L.KEY_GROUP)
QUAD = tl.constexpr(L.VALUE_QUAD)
HEAD_WORDS = tl.constexpr(L.HEAD_WORDS)
_W_LEVEL = tl.constexpr(L.W_LEVEL)
_LEVEL_FAR = tl.constexpr(L.LEVEL_FAR)
_COUNT_BITS = tl.constexpr(L.COUNT_BITS)
_COUNT_MASK = tl.constexpr((1 << L.COUNT_BITS) - 1)
_ALIGN_WORDS = tl.constexpr(L.ALIGN // 4)


@dataclass(frozen=True)
class RecordShape:
    """The layout's numbers a kernel is compiled for."""

    page: int
    dim: int
    pad: int  # ``dim`` up to a power of two
    key_base: int  # planes
    value_base: int
    key_fine: int
    value_fine: int
    near: bool
    mid_keys_fine: bool
    mid_values_fine: bool
    block_words: int
    log_words: int
    list_word: int
    head_word: int
    tier_map_word: int
    centre_half: int
    # A code is read at its bin's centre, this far above the code with its missing bits zero.
    key_centre: float
    key_centre_low: float
    value_centre: float
    value_centre_low: float


def shape_of(layout: RecordLayout) -> RecordShape:
    """The numbers of a layout."""
    planes = layout.planes
    return RecordShape(
        layout.page_size,
        layout.head_dim,
        triton.next_power_of_2(layout.head_dim),
        planes.key_base,
        planes.value_base,
        planes.key_refine,
        planes.value_refine,
        layout.near,
        layout.mid_keys_fine,
        layout.mid_values_fine,
        layout.block_bytes // 4,
        (layout.block_bytes // 4).bit_length() - 1,
        layout.list_word,
        layout.head_word,
        layout.tier_map_start // 4,
        layout.centre_start // 2,
        bin_centre(layout.high.key_bits)[1],
        bin_centre(layout.low.key_bits)[1],
        bin_centre(layout.high.value_bits)[1],
        bin_centre(layout.low.value_bits)[1],
    )


# Where runs and planes lie


@triton.jit
def _align(words):
    return (words + (_ALIGN_WORDS - 1)) // _ALIGN_WORDS * _ALIGN_WORDS


@triton.jit
def key_plane(tokens, S: tl.constexpr):
    """Words of a key plane of so many tokens."""
    return tokens * (S.dim // 8)


@triton.jit
def value_plane(first, stop, S: tl.constexpr):
    """Words of a value plane of tokens ``first`` to ``stop``."""
    quads = (stop + (QUAD - 1)) // QUAD - first // QUAD
    return tl.where(stop > first, quads, 0) * (S.dim // 4)


@triton.jit
def far_runs(base, fine, fine_keys, far, S: tl.constexpr):
    """Keys and values of far tokens, and refinement of values, from where scales and refined keys start."""
    keys = base + _align(2 * far)
    values = keys + _align(S.key_base * key_plane(far, S))
    return keys, values, fine + _align(S.key_fine * key_plane(fine_keys, S))


@triton.jit
def near_runs(near, fine_keys, fine_values, far, S: tl.constexpr):
    """In the near part: refinement of the other far values; scales, keys and values of pruned tokens."""
    pruned = S.page - far
    low_values = near + _align(S.key_fine * key_plane(far - fine_keys, S))
    scales = low_values + _align(S.value_fine * value_plane(fine_values, far, S))
    keys = scales + _align(2 * pruned)
    return low_values, scales, keys, keys + _align((S.key_base + S.key_fine) * key_plane(pruned, S))


@triton.jit
def key_place(start, first, stop, token, S: tl.constexpr):
    """Offset of the first word of tokens in a key plane that holds ``first`` to ``stop``, and on to the next one."""
    group = token // _GROUP * _GROUP
    begin = tl.maximum(group, first)
    width = tl.minimum(group + _GROUP, stop) - begin
    return start + (begin - first) * (S.dim // 8) + token - begin, width


@triton.jit
def value_place(start, first, quad, S: tl.constexpr):
    """Offset of the first word of quads in a value plane that begins with the quad of ``first``."""
    return start + (quad - first // QUAD) * (S.dim // 4)


@triton.jit
def open_head(words, block, head, S: tl.constexpr):
    """Of the record with this first block: its block list; a KV head's far tokens, and how many keys and values of them
    have refinement; the record's level, and where the head's sections start. An absent record, block 0, has no far
    tokens.
    """
    header = words + block.to(tl.int64) * S.block_words
    at = header + (S.head_word + HEAD_WORDS * head)
    counts, level = tl.load(at), tl.load(header + _W_LEVEL)
    base, fine, near = tl.load(at + 1) // 4, tl.load(at + 2) // 4, tl.load(at + 3) // 4
    high, mid = counts & _COUNT_MASK, (counts >> _COUNT_BITS) & _COUNT_MASK
    far = high + mid + (counts >> 2 * _COUNT_BITS)
    return (
        header + S.list_word,
        high + mid * S.mid_keys_fine,
        high + mid * S.mid_values_fine,
        far,
        level,
        base,
        fine,
        near,
    )


@triton.jit
def refined_tokens(near, level, kept, far):
    """How many far tokens, in their order, a view reads with their refinement, of which the far section holds some."""
    return tl.where(near, far, tl.where(level >= _LEVEL_FAR, kept, 0))
