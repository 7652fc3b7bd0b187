"""The words of the record format: tiers, planes of codes, levels, header words. :mod:`leankv_kernels.layout` explains.

A new tier format begins here: its bits in ``TIERS`` and, if it needs planes of other widths, those in
:func:`key_planes` and :func:`value_planes`. Sizes, places and the reference follow from that; docs/record-format.md
says what the fast backends need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

MASTER_BITS = 8
"""Bits of the code that every tier keeps the top of."""

PRUNED, LOW, HIGH, MID = range(4)
"""Tier codes of the tier map."""
TIER_BITS = 2
"""Bits of a tier code in the tier map."""

LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR = 1, 2, 3
"""What a record still holds: base codes only (demoted), base and refinement (trimmed), everything."""

ALIGN = 16
HEADER_ALIGN = 64
"""Bytes: of a run of a kind of data, and of the header, so that heads of whole tiers start on cache lines."""
SCALE_BYTES = 8
"""Bytes of a token's fp16 key scale, key zero, value scale, value zero."""
KEY_GROUP = 16
"""Tokens whose key words lie side by side."""
KEY_WORD = 8
"""Channels of a token whose codes of one key plane are one word."""
VALUE_QUAD = 4
"""Tokens that share a byte per channel of a value plane."""
KEY_PLANE, VALUE_PLANE = 4, 2
"""Bits of a code that one plane holds."""
CUTS = (0, 2, 4)
"""Bits that a low tier may cut off a key, or off a value, of the high tier."""
MAX_PAGE, MAX_DIM = 256, 512
"""The longest page and the widest head."""
HEADER_WORDS = 8
HEAD_WORDS = 4
COUNT_BITS = 10
"""Bits of the tokens of each tier in a KV head's first word: high, mid, low, lowest bits first."""
MAGIC = 0x564B4C31
W_PAGE, W_LAYER, W_BLOCKS, W_BYTES, W_LEVEL, W_MAGIC, W_SPARE = range(7)
"""Indices of the header's int32 words."""
H_COUNTS, H_BASE, H_REFINE, H_NEAR = range(HEAD_WORDS)
"""Indices of a KV head's int32 words: the word of counts, and the bytes where its sections start."""


def align_up(n: int, to: int = ALIGN) -> int:
    """The least multiple of ``to`` that is at least ``n``."""
    return -(-n // to) * to


def any_of(numbers: Sequence[int]) -> str:
    """For a sentence: ``0, 2 or 4``."""
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"


def bin_width(bits: int) -> int:
    """How many master codes share a code of ``bits`` bits."""
    return 1 << (MASTER_BITS - bits)


def bin_centre(bits: int) -> tuple[int, float]:
    """``(step, offset)`` in master codes: a code ``q`` of ``bits`` bits is read as ``step * q + offset``."""
    step = bin_width(bits)
    return step, (step - 1) / 2


def key_planes(bits: int) -> tuple[int, ...]:
    """Widths in bits of the planes that hold ``bits`` bits of a key's code, top bits first."""
    return _equal_planes(bits, KEY_PLANE, "key")


def value_planes(bits: int) -> tuple[int, ...]:
    """Widths in bits of the planes that hold ``bits`` bits of a value's code, top bits first."""
    return _equal_planes(bits, VALUE_PLANE, "value")


def _equal_planes(bits: int, width: int, what: str) -> tuple[int, ...]:
    if bits % width:
        raise ValueError(f"{bits} bits of a {what} are no whole number of planes of {width} bits")
    return (width,) * (bits // width)


class Tier(NamedTuple):
    """Bits kept of the 8-bit master code of a key and of a value."""

    key_bits: int
    value_bits: int

    @property
    def name(self) -> str:
        """The tier's name, such as ``k8v4``."""
        return f"k{self.key_bits}v{self.value_bits}"


TIERS = {t.name: t for t in (Tier(8, 8), Tier(8, 4), Tier(4, 4), Tier(4, 2))}
"""Every format a tier can have, by name."""


class TierCounts(NamedTuple):
    """Tokens of each tier but the pruned, integers ``[n, H]``."""

    high: Tensor
    mid: Tensor
    low: Tensor

    @property
    def far(self) -> Tensor:
        """Tokens that the far view reads."""
        return self.high + self.mid + self.low

    def word(self) -> Tensor:
        """All of them in one word of the header."""
        return self.high + (self.mid << COUNT_BITS) + (self.low << 2 * COUNT_BITS)

    @classmethod
    def of_word(cls, word: Tensor) -> TierCounts:
        """The inverse of :meth:`word`, for int64."""
        return cls(*((word >> COUNT_BITS * i) & ((1 << COUNT_BITS) - 1) for i in range(3)))

    @classmethod
    def of(cls, tiers: Tensor) -> TierCounts:
        """The counts of tiers ``[n, H, P]``."""
        return cls(*((tiers == tier).sum(2) for tier in (HIGH, MID, LOW)))
