"""Sizes of records: how long each part is, how long a block, how many of them; and where the header's parts begin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels.layout.format import (
    CUTS,
    HEAD_WORDS,
    HEADER_ALIGN,
    HEADER_WORDS,
    LEVEL_BASE,
    LEVEL_FAR,
    LEVEL_NEAR,
    MAX_DIM,
    MAX_PAGE,
    SCALE_BYTES,
    TIER_BITS,
    Tier,
    TierCounts,
    align_up,
    any_of,
)
from leankv_kernels.layout.places import Places, Sections, find_places, section_bytes
from leankv_kernels.layout.shape import RecordShape


class TokenBytes(NamedTuple):
    """Bytes of one token's data of each kind, before padding."""

    scale: int
    key_base: int
    value_base: int
    key_refine: int
    value_refine: int


@dataclass(frozen=True)
class RecordLayout:
    """Sizes and offsets of the records of one model.

    Args:
        page_size: tokens of a page, a multiple of 16.
        num_kv_heads: KV heads held on this rank.
        head_dim: channels of keys, a multiple of 16, 16 to 512.
        high, low: formats of the outer tiers; ``low`` is a cut of ``high`` (equal for a single tier).
        near: whether a near part is kept (near_pages > 0).
        mid: format of a tier between them, which has the keys of one and the values of the other.
        v_head_dim: channels of values, by the same rule; 0 for as many as keys have.

    Raises:
        ValueError: for a shape or a pair of tiers the layout cannot hold; the message says which.
    """

    page_size: int
    num_kv_heads: int
    head_dim: int
    high: Tier
    low: Tier
    near: bool = True
    mid: Tier | None = None
    v_head_dim: int = 0

    def __post_init__(self) -> None:
        if self.page_size % 16 or not 16 <= self.page_size <= MAX_PAGE:
            raise ValueError(f"page size {self.page_size} is not a multiple of 16 between 16 and {MAX_PAGE}")
        object.__setattr__(self, "v_head_dim", self.v_head_dim or self.head_dim)
        for what, dim in (("head_dim", self.head_dim), ("v_head_dim", self.v_head_dim)):
            if dim % 16 or not 16 <= dim <= MAX_DIM:
                raise ValueError(f"{what} {dim} is not a multiple of 16 between 16 and {MAX_DIM}")
        if self.num_kv_heads < 1:
            raise ValueError("a layer needs at least one KV head")
        for what, cut in (("key", self.key_refine_bits), ("value", self.value_refine_bits)):
            if cut not in CUTS:
                raise ValueError(
                    f"tiers {self.high.name},{self.low.name}: the low tier must cut {any_of(CUTS)} bits off a {what} "
                    f"of the high tier, not {cut}"
                )
        between = (Tier(self.high.key_bits, self.low.value_bits), Tier(self.low.key_bits, self.high.value_bits))
        if self.mid and (self.mid not in between or self.mid in (self.high, self.low)):
            raise ValueError(
                f"tiers {self.high.name},{self.mid.name},{self.low.name}: the middle tier must have the keys of one of "
                "the others and the values of the other"
            )
        _ = self.block_bytes  # raises for shapes no block can hold

    @property
    def key_refine_bits(self) -> int:
        """Bits by which a high key is longer than a low one."""
        return self.high.key_bits - self.low.key_bits

    @property
    def value_refine_bits(self) -> int:
        """Bits by which a high value is longer than a low one."""
        return self.high.value_bits - self.low.value_bits

    @property
    def mid_keys_fine(self) -> bool:
        """Whether the middle tier's keys are the high tier's."""
        return self.mid is not None and self.mid.key_bits == self.high.key_bits

    @property
    def mid_values_fine(self) -> bool:
        """Whether the middle tier's values are the high tier's."""
        return self.mid is not None and self.mid.value_bits == self.high.value_bits

    @property
    def mid_refine_bytes(self) -> int:
        """Bytes of a middle token's refinement."""
        size = self.token_bytes
        return self.mid_keys_fine * size.key_refine + self.mid_values_fine * size.value_refine

    def refined(self, counts: TierCounts) -> tuple[Tensor, Tensor]:
        """How many keys, and how many values, of the far tokens in their order have refinement."""
        keys, values = (counts.high + fine * counts.mid for fine in (self.mid_keys_fine, self.mid_values_fine))
        return keys, values

    @cached_property
    def shape(self) -> RecordShape:
        """All of it in the numbers that kernels are given."""
        return RecordShape.of(self)

    @property
    def token_bytes(self) -> TokenBytes:
        """Bytes of a token's data of each kind, before padding."""
        keys, values = self.head_dim, self.v_head_dim
        return TokenBytes(
            SCALE_BYTES,
            keys * self.low.key_bits // 8,
            values * self.low.value_bits // 8,
            keys * self.key_refine_bits // 8,
            values * self.value_refine_bits // 8,
        )

    @cached_property
    def tier_map_bytes(self) -> int:
        """Bytes of one KV head's tier map."""
        return self.page_size * TIER_BITS // 8

    @cached_property
    def _worst_body(self) -> int:
        # Bytes are linear in the counts but for padding, which repeats every 4 tokens, and for empty runs.
        few = torch.arange(9)
        three = torch.cartesian_prod(few, few, few)
        rest = self.page_size - three.sum(1, keepdim=True)
        fits = rest[:, 0] >= 0
        by_tier = torch.cat([three, rest], 1)[fits]
        high, mid, low, _ = torch.cat([by_tier.roll(i, 1) for i in range(4)])[..., None].unbind(1)
        if self.mid is None:
            mid, low = torch.zeros_like(mid), low + mid
        parts = section_bytes(self, TierCounts(high, mid, low))
        return self.num_kv_heads * int(torch.stack(parts).sum(0).max())

    @property
    def centre_bytes(self) -> int:
        """Bytes of the centre of one KV head's keys."""
        return 2 * self.head_dim

    def _header_bytes(self, blocks: int) -> int:
        words = 4 * (HEADER_WORDS + blocks + HEAD_WORDS * self.num_kv_heads)
        centres = align_up(words + self.num_kv_heads * self.tier_map_bytes, HEADER_ALIGN)
        return align_up(centres + self.num_kv_heads * self.centre_bytes, HEADER_ALIGN)

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of a block: the power of two at which half a block of padding and the block list cost least."""
        body = self._worst_body
        candidates = [256 << i for i in range(7)]
        # Block list and head words must end inside the first block, where a reader finds them.
        fixed = 4 * (HEADER_WORDS + HEAD_WORDS * self.num_kv_heads)
        fits = [b for b in candidates if fixed + 4 * (-(-body // b) + 4) <= b]
        if not fits:
            raise ValueError(
                f"records of {self.num_kv_heads} KV heads of {self.head_dim} are too long for any block size"
            )
        return min(fits, key=lambda b: b / 2 + 4 * (body / b))

    @cached_property
    def max_blocks(self) -> int:
        """Blocks of the longest record, which is what a page reserves in every layer."""
        blocks = 1
        while (need := -(-(self._header_bytes(blocks) + self._worst_body) // self.block_bytes)) > blocks:
            blocks = need
        return blocks

    @property
    def record_bytes(self) -> int:
        """Bytes reserved for one record: ``max_blocks * block_bytes``."""
        return self.max_blocks * self.block_bytes

    @property
    def header_bytes(self) -> int:
        """Bytes of the header: words, block list, heads, tier maps."""
        return self._header_bytes(self.max_blocks)

    @property
    def list_word(self) -> int:
        """Index of the block list's first int32 word in the header."""
        return HEADER_WORDS

    @property
    def head_word(self) -> int:
        """Index of the first KV head's int32 words in the header."""
        return HEADER_WORDS + self.max_blocks

    @property
    def tier_map_start(self) -> int:
        """Byte offset of the first KV head's tier map."""
        return 4 * (self.head_word + HEAD_WORDS * self.num_kv_heads)

    @property
    def centre_start(self) -> int:
        """Byte offset of the first KV head's centre."""
        return align_up(self.tier_map_start + self.num_kv_heads * self.tier_map_bytes, HEADER_ALIGN)

    def sections(self, counts: TierCounts) -> Sections:
        """Byte offsets of every KV head's sections, int64 ``[n, H]``, and the records' ends ``[n]``, for the given
        int64 counts.
        """
        parts = torch.cat(section_bytes(self, counts), dim=1)
        ends = parts.cumsum(1) + self.header_bytes
        starts = ends - parts
        h = self.num_kv_heads
        return Sections(starts[:, :h], starts[:, h : 2 * h], starts[:, 2 * h :], ends[:, -1])

    def level_bytes(self, counts: TierCounts, level: Tensor) -> Tensor:
        """Length in bytes ``[n]`` of records that hold what ``level`` ``[n]`` says."""
        s = self.sections(counts)
        cut = torch.where(level == LEVEL_BASE, s.refine[:, 0], s.near[:, 0])
        return torch.where(level >= LEVEL_NEAR, s.end, cut)

    def head_bytes(self, counts: TierCounts, level: Tensor) -> Tensor:
        """Bytes ``[n, H]`` of each KV head's data in records that hold what ``level`` ``[n]`` says: codes and scales,
        the padding of their runs, and its keys' centre. The rest of a record is its header.
        """
        base, refine, near = section_bytes(self, counts)
        at = level[:, None]
        return base + refine * (at >= LEVEL_FAR) + near * (at >= LEVEL_NEAR) + self.centre_bytes

    def places(self, tiers: Tensor) -> Places:
        """Where each token's data lies in a full record.

        Args:
            tiers: tier of every token, integers ``[n, H, P]``.
        """
        return find_places(self, tiers)
