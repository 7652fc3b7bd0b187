"""The byte layout of a record, the compressed form of one (page, layer). This file alone knows it.

A record is one run of bytes laid over fixed-size blocks and ordered by worth, so that cutting its tail is all that
trimming and demoting ever do::

    header | base codes of far tokens | refinement of high tokens | near part
           ^ base_start               ^ refine_start              ^ near_start

Header (int32 words): page, layer, blocks, bytes, level, magic, 2 spare | block list | per KV head {high + low * 65536
counts, base, refine, near offsets} | per KV head the 2-bit tier map (token t in byte t % (P/4), bits 2 * (t // (P/4))).

Every code is the top ``b`` bits of one 8-bit master code over the token's [min, max], read at the centre of its bin,
so a low token is a high token with its tail cut off and one scale and zero serve every tier. Inside a section each KV
head owns one run per kind of row; runs start at multiples of 16 bytes. Far tokens come high first, then low, each in
order of position; the tier map gives true positions back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

PRUNED, LOW, HIGH = 0, 1, 2
"""Tier codes of the tier map."""

LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR = 1, 2, 3
"""What a record still holds: base codes only (demoted), base and refinement (trimmed), everything."""

ALIGN = 16
SCALE_ROW = 8
"""Bytes of a token's fp16 key scale, key zero, value scale, value zero."""
HEADER_WORDS = 8
HEAD_WORDS = 4
MAGIC = 0x564B4C31
W_PAGE, W_LAYER, W_BLOCKS, W_BYTES, W_LEVEL, W_MAGIC = range(6)


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


class RowOffsets(NamedTuple):
    """Byte offset in the record of every token's rows, int64 ``[n, H, P]``; -1 for rows the record does not keep."""

    scale: Tensor
    key_base: Tensor
    value_base: Tensor
    key_refine: Tensor
    value_refine: Tensor


class Sections(NamedTuple):
    """Where the sections of records start, int64 ``[n]``, and per KV head ``[n, H]``; ``end`` is the full length."""

    base: Tensor
    refine: Tensor
    near: Tensor
    end: Tensor


def align_up(n: int, to: int = ALIGN) -> int:
    """The least multiple of ``to`` that is at least ``n``."""
    return -(-n // to) * to


def _align(t: Tensor) -> Tensor:
    return (t + (ALIGN - 1)) // ALIGN * ALIGN


@dataclass(frozen=True)
class RecordLayout:
    """Sizes and offsets of the records of one model.

    Args:
        page_size: tokens of a page, a multiple of 16.
        num_kv_heads: KV heads held on this rank.
        head_dim: channels of keys and of values, a multiple of 16, 16 to 256.
        high, low: formats of the two tiers; ``low`` is a cut of ``high`` (equal for a single tier).
        near: whether a near part is kept (window > 0).

    Raises:
        ValueError: for a shape or a pair of tiers the layout cannot hold; the message says which.
    """

    page_size: int
    num_kv_heads: int
    head_dim: int
    high: Tier
    low: Tier
    near: bool = True

    def __post_init__(self) -> None:
        if self.page_size % 16 or not 16 <= self.page_size <= 256:
            raise ValueError(f"page size {self.page_size} is not a multiple of 16 between 16 and 256")
        if self.head_dim % 16 or not 16 <= self.head_dim <= 256:
            raise ValueError(f"head_dim {self.head_dim} is not a multiple of 16 between 16 and 256")
        if self.num_kv_heads < 1:
            raise ValueError("a layer needs at least one KV head")
        for what, cut in (("key", self.key_refine_bits), ("value", self.value_refine_bits)):
            if cut not in (0, 2, 4):
                raise ValueError(
                    f"tiers {self.high.name},{self.low.name}: the low tier must cut 0, 2 or 4 bits off a {what} of the "
                    f"high tier, not {cut}"
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
    def row_bytes(self) -> RowBytes:
        """Bytes of a token's row of each kind."""
        d = self.head_dim
        return RowBytes(
            SCALE_ROW,
            d * self.low.key_bits // 8,
            d * self.low.value_bits // 8,
            d * self.key_refine_bits // 8,
            d * self.value_refine_bits // 8,
        )

    @cached_property
    def tier_map_bytes(self) -> int:
        """Bytes of one KV head's tier map."""
        return self.page_size // 4

    def _worst_body(self) -> int:
        # Every token keeps all its rows until a cut; only the padding of runs depends on the tiers.
        rows = self.row_bytes
        runs = 12 if self.near else 5
        return self.num_kv_heads * (self.page_size * sum(rows) + runs * (ALIGN - 1))

    def _header_bytes(self, blocks: int) -> int:
        words = 4 * (HEADER_WORDS + blocks + HEAD_WORDS * self.num_kv_heads)
        return align_up(words + self.num_kv_heads * self.tier_map_bytes)

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of a block: the power of two at which half a block of padding and the block list cost least."""
        body = self._worst_body()
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
        while (need := -(-(self._header_bytes(blocks) + self._worst_body()) // self.block_bytes)) > blocks:
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

    def run_bytes(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bytes of each KV head's base, refinement and near sections for the given int64 counts ``[n, H]``."""
        rows, far, pruned = self.row_bytes, high + low, self.page_size - high - low
        base = _align(far * rows.scale) + _align(far * rows.key_base) + _align(far * rows.value_base)
        refine = _align(high * rows.key_refine) + _align(high * rows.value_refine)
        if not self.near:
            return base, refine, torch.zeros_like(base)
        near = _align(low * rows.key_refine) + _align(low * rows.value_refine)
        for row in rows:
            near = near + _align(pruned * row)
        return base, refine, near

    def sections(self, high: Tensor, low: Tensor) -> Sections:
        """Byte offsets of every KV head's sections, int64 ``[n, H]``, and the records' ends ``[n]``."""
        parts = torch.cat(self.run_bytes(high, low), dim=1)
        ends = parts.cumsum(1) + self.header_bytes
        starts = ends - parts
        h = self.num_kv_heads
        return Sections(starts[:, :h], starts[:, h : 2 * h], starts[:, 2 * h :], ends[:, -1])

    def level_bytes(self, high: Tensor, low: Tensor, level: Tensor) -> Tensor:
        """Length in bytes ``[n]`` of records that hold what ``level`` ``[n]`` says."""
        s = self.sections(high, low)
        cut = torch.where(level == LEVEL_BASE, s.refine[:, 0], s.near[:, 0])
        return torch.where(level >= LEVEL_NEAR, s.end, cut)

    def row_offsets(self, tiers: Tensor) -> RowOffsets:
        """Where each token's rows lie in a full record.

        Args:
            tiers: tier of every token, integers ``[n, H, P]``.
        """
        rows = self.row_bytes
        # [tier, n, H, P], tiers in the order of their codes
        member = torch.stack([tiers == PRUNED, tiers == LOW, tiers == HIGH])
        upto = member.cumsum(3)
        pruned, low, high = upto[..., -1]
        rank = upto.gather(0, tiers.long()[None])[0] - 1
        far_rank = rank + high[..., None] * member[LOW]
        far = high + low
        s = self.sections(high, low)

        def after(start: Tensor, *runs: Tensor) -> list[Tensor]:
            starts = [start]
            for run in runs:
                starts.append(starts[-1] + _align(run))
            return starts

        scale, key, value = after(s.base, far * rows.scale, far * rows.key_base)
        key_high, value_high = after(s.refine, high * rows.key_refine)
        lost = torch.full_like(s.base, -(1 << 40))
        key_low = value_low = p_scale = p_key = p_value = p_key_refine = p_value_refine = lost
        if self.near:
            key_low, value_low, p_scale, p_key, p_key_refine, p_value, p_value_refine = after(
                s.near,
                low * rows.key_refine,
                low * rows.value_refine,
                pruned * rows.scale,
                pruned * rows.key_base,
                pruned * rows.key_refine,
                pruned * rows.value_base,
            )
        starts = [
            (p_scale, scale, scale),
            (p_key, key, key),
            (p_value, value, value),
            (p_key_refine, key_low, key_high),
            (p_value_refine, value_low, value_high),
        ]
        table = torch.stack([torch.stack(by_tier, dim=-1) for by_tier in starts])
        tier_index = tiers.long().expand(len(rows), *tiers.shape)
        first = table.gather(3, tier_index)
        ranks = [far_rank] * 3 + [rank] * 2
        offsets = [(start + r * row).clamp(min=-1) for start, r, row in zip(first, ranks, rows, strict=True)]
        return RowOffsets(*offsets)


class RowBytes(NamedTuple):
    """Bytes of one token's row of each kind, in the order of :class:`RowOffsets`."""

    scale: int
    key_base: int
    value_base: int
    key_refine: int
    value_refine: int
