"""Where things lie in a record, for Triton kernels: with ``planes``, ``read`` and ``write`` all that knows the layout.

``leankv_kernels.layout`` is the text this follows; kernels are compiled for a layout's ``RecordShape``, which they call
S. Offsets are counted in 32-bit words from a record's start.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from leankv_kernels import layout as L
from leankv_kernels.triton.planes import key_words, value_words

HEAD_WORDS = tl.constexpr(L.HEAD_WORDS)
_W_LEVEL = tl.constexpr(L.W_LEVEL)
_LEVEL_FAR = tl.constexpr(L.LEVEL_FAR)
_COUNT_BITS = tl.constexpr(L.COUNT_BITS)
_COUNT_MASK = tl.constexpr((1 << L.COUNT_BITS) - 1)
_ALIGN_WORDS = tl.constexpr(L.ALIGN // 4)


# Where runs and planes lie


@triton.jit
def _align(words):
    return (words + (_ALIGN_WORDS - 1)) // _ALIGN_WORDS * _ALIGN_WORDS


@triton.jit
def far_runs(base, fine, fine_keys, far, S: tl.constexpr):
    """Keys and values of far tokens, and refinement of values, from where scales and refined keys start."""
    keys = base + _align(2 * far)
    values = keys + _align(key_words(S.key_base_bits, far, S))
    return keys, values, fine + _align(key_words(S.key_refine_bits, fine_keys, S))


@triton.jit
def near_runs(near, fine_keys, fine_values, far, S: tl.constexpr):
    """In the near part: refinement of the other far values; scales, keys and values of pruned tokens."""
    pruned = S.page_size - far
    low_values = near + _align(key_words(S.key_refine_bits, far - fine_keys, S))
    scales = low_values + _align(value_words(S.value_refine_bits, fine_values, far, S))
    keys = scales + _align(2 * pruned)
    nbytes = key_words(S.key_base_bits, pruned, S) + key_words(S.key_refine_bits, pruned, S)
    return low_values, scales, keys, keys + _align(nbytes)


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
