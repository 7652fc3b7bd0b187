"""The byte layout of a record, the compressed form of one (page, layer). This file alone knows it.

A record is one run of bytes laid over fixed-size blocks and ordered by worth, so that cutting its tail is all that
trimming and demoting ever do::

    header | base codes of far tokens | refinement of far tokens | near part
           ^ base_start               ^ refine_start              ^ near_start

Header (int32 words): page, layer, blocks, bytes, level, magic, 2 spare (zero) | block list | per KV head {counts of
high, mid and low tokens in 10 bits each, base, refine, near offsets} | per KV head the 2-bit tier map (token t in byte
t % (P/4), bits 2 * (t // (P/4))) | from a multiple of 64 on, per KV head the centre of the page's keys, D fp16.

Every code is the top ``b`` bits of one 8-bit master code over the token's [min, max], read at the centre of its bin,
so a low token is a high token with its tail cut off and one scale and zero serve every tier. Keys are coded less the
centre of their page, so that what all have in common costs no precision. Codes are stored as
planes, top bits first: keys in planes of 4 bits, values in planes of 2 bits; a tier is a number of planes. Inside a
section each KV head owns one run per kind of data; runs start at multiples of 16 bytes. Far tokens come high first,
then mid, then low, each in order of position; the tier map gives true positions back. A mid token has the keys of one
of its neighbours and the values of the other, so refined keys, and refined values, are the first so many far tokens'.

Planes are laid out for dot products over whole registers, without transposing anything (``Span`` has the arithmetic):

- scales: four arrays of fp16, key scale, key zero, value scale, value zero of all tokens of the run.
- key plane: tokens in groups of 16. Eight neighbouring channels of a token are one 32-bit word, first channel lowest;
  a group stores word 0 of its tokens side by side, then word 1 of all, ... A group cut short stores what it has.
- value plane: tokens in quads. One byte per channel holds the 2-bit codes of a quad, first token lowest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

PRUNED, LOW, HIGH, MID = range(4)
"""Tier codes of the tier map."""

LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR = 1, 2, 3
"""What a record still holds: base codes only (demoted), base and refinement (trimmed), everything."""

ALIGN = 16
HEADER_ALIGN = 64
"""Bytes: of a run of a kind of data, and of the header, so that heads of whole tiers start on cache lines."""
SCALE_BYTES = 8
"""Bytes of a token's fp16 key scale, key zero, value scale, value zero."""
KEY_GROUP = 16
"""Tokens whose key words lie side by side."""
VALUE_QUAD = 4
"""Tokens that share a byte per channel of a value plane."""
KEY_PLANE, VALUE_PLANE = 4, 2
"""Bits of a code that one plane holds."""
HEADER_WORDS = 8
HEAD_WORDS = 4
COUNT_BITS = 10
"""Bits of the tokens of each tier in a KV head's first word: high, mid, low, lowest bits first."""
MAGIC = 0x564B4C31
W_PAGE, W_LAYER, W_BLOCKS, W_BYTES, W_LEVEL, W_MAGIC, W_SPARE = range(7)


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


class TokenBytes(NamedTuple):
    """Bytes of one token's data of each kind, before padding."""

    scale: int
    key_base: int
    value_base: int
    key_refine: int
    value_refine: int


class Planes(NamedTuple):
    """Number of planes of each kind."""

    key_base: int
    value_base: int
    key_refine: int
    value_refine: int


class Span(NamedTuple):
    """Where one plane lies: its first byte, and the range of token numbers it holds; integer tensors of one shape."""

    start: Tensor
    first: Tensor
    stop: Tensor

    def key_word(self, token: Tensor, word: Tensor, head_dim: int) -> Tensor:
        """Byte offset of a token's 32-bit word: channels ``8 * word`` to ``8 * word + 7``."""
        group = token // KEY_GROUP * KEY_GROUP
        begin = torch.maximum(group, self.first)
        width = torch.minimum(group + KEY_GROUP, self.stop) - begin
        return self.start + (begin - self.first) * (head_dim * KEY_PLANE // 8) + 4 * (word * width + token - begin)

    def value_byte(self, token: Tensor, channel: Tensor, head_dim: int) -> Tensor:
        """Byte offset that holds a token's code of a channel, at bits ``2 * (token % 4)``."""
        return self.start + (token // VALUE_QUAD - self.first // VALUE_QUAD) * head_dim + channel


class Places(NamedTuple):
    """Where every token of n records lies, integers ``[n, H, P]``; starts are negative where nothing is kept."""

    token: Tensor  # number in its order: of far tokens, high first, or of pruned ones
    scale: Tensor  # byte offset of the key scale
    scale_stride: Tensor  # bytes from there to the key zero, on to the value scale, on to the value zero
    key: list[Span]  # per plane of the high tier, top bits first
    value: list[Span]


class _Run(NamedTuple):
    """Data of one kind of one KV head: tokens ``first`` to ``stop`` of their order, in so many planes."""

    section: int
    kind: str
    planes: int
    first: Tensor
    stop: Tensor


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
        high, low: formats of the outer tiers; ``low`` is a cut of ``high`` (equal for a single tier).
        near: whether a near part is kept (near_pages > 0).
        mid: format of a tier between them, which has the keys of one and the values of the other.

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

    @property
    def planes(self) -> Planes:
        """Planes of a base and of a refinement code."""
        return Planes(
            self.low.key_bits // KEY_PLANE,
            self.low.value_bits // VALUE_PLANE,
            self.key_refine_bits // KEY_PLANE,
            self.value_refine_bits // VALUE_PLANE,
        )

    @property
    def token_bytes(self) -> TokenBytes:
        """Bytes of a token's data of each kind, before padding."""
        d = self.head_dim
        return TokenBytes(
            SCALE_BYTES,
            d * self.low.key_bits // 8,
            d * self.low.value_bits // 8,
            d * self.key_refine_bits // 8,
            d * self.value_refine_bits // 8,
        )

    @cached_property
    def tier_map_bytes(self) -> int:
        """Bytes of one KV head's tier map."""
        return self.page_size // 4

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
        parts = self._section_bytes(TierCounts(high, mid, low))
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

    def _runs(self, counts: TierCounts) -> list[_Run]:
        """Every run of a KV head in the order they are stored in; all that knows this order asks here."""
        planes, none, far = self.planes, torch.zeros_like(counts.high), counts.far
        keys, values = self.refined(counts)
        runs = [
            _Run(0, "scale", 1, none, far),
            _Run(0, "key", planes.key_base, none, far),
            _Run(0, "value", planes.value_base, none, far),
            _Run(1, "key", planes.key_refine, none, keys),
            _Run(1, "value", planes.value_refine, none, values),
        ]
        if self.near:
            pruned = self.page_size - far
            runs += [
                _Run(2, "key", planes.key_refine, keys, far),
                _Run(2, "value", planes.value_refine, values, far),
                _Run(2, "scale", 1, none, pruned),
                _Run(2, "key", planes.key_base + planes.key_refine, none, pruned),
                _Run(2, "value", planes.value_base + planes.value_refine, none, pruned),
            ]
        return runs

    def _plane_bytes(self, run: _Run) -> Tensor:
        count = run.stop - run.first
        if run.kind == "scale":
            return count * SCALE_BYTES
        if run.kind == "key":
            return count * (self.head_dim * KEY_PLANE // 8)
        quads = -(-run.stop // VALUE_QUAD) - run.first // VALUE_QUAD
        return torch.where(count > 0, quads, 0) * self.head_dim

    def _run_bytes(self, run: _Run) -> Tensor:
        return _align(run.planes * self._plane_bytes(run))

    def _section_bytes(self, counts: TierCounts) -> list[Tensor]:
        parts = [torch.zeros_like(counts.high) for _ in range(3)]
        for run in self._runs(counts):
            parts[run.section] = parts[run.section] + self._run_bytes(run)
        return parts

    def sections(self, counts: TierCounts) -> Sections:
        """Byte offsets of every KV head's sections, int64 ``[n, H]``, and the records' ends ``[n]``, for the given
        int64 counts.
        """
        parts = torch.cat(self._section_bytes(counts), dim=1)
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
        base, refine, near = self._section_bytes(counts)
        at = level[:, None]
        return base + refine * (at >= LEVEL_FAR) + near * (at >= LEVEL_NEAR) + self.centre_bytes

    def places(self, tiers: Tensor) -> Places:
        """Where each token's data lies in a full record.

        Args:
            tiers: tier of every token, integers ``[n, H, P]``.
        """
        # [tier, n, H, P], tiers in the order of their codes
        member = torch.stack([tiers == PRUNED, tiers == LOW, tiers == HIGH, tiers == MID])
        upto = member.cumsum(3)
        _, low, high, mid = upto[..., -1]
        counts = TierCounts(high, mid, low)
        ahead = high[..., None] * (member[LOW] | member[MID]) + mid[..., None] * member[LOW]
        token = upto.gather(0, tiers.long()[None])[0] - 1 + ahead
        runs = self._runs(counts)
        at = list(self.sections(counts)[:3])
        starts = []
        for run in runs:
            starts.append(at[run.section])
            at[run.section] = at[run.section] + self._run_bytes(run)
        nowhere = torch.full_like(high, -(1 << 40))
        while len(starts) < 10:  # no near part
            starts.append(nowhere)
            runs.append(_Run(2, "scale", 0, torch.zeros_like(high), torch.ones_like(high)))

        def by_tier(per_tier: list[Tensor]) -> Tensor:
            # in the order of the tier codes: pruned, low, high, mid
            return torch.stack(per_tier, dim=-1).gather(2, tiers.long())

        def span(base: int, refine: tuple[int, int, int], pruned: int, plane: int, base_planes: int) -> Span:
            fine = plane - base_planes
            chosen = [(pruned, plane), *([(base, plane)] * 3 if fine < 0 else [(run, fine) for run in refine])]
            return Span(
                by_tier([starts[r] + p * self._plane_bytes(runs[r]) for r, p in chosen]),
                by_tier([runs[r].first for r, _ in chosen]),
                by_tier([runs[r].stop for r, _ in chosen]),
            )

        planes = self.planes
        mid_key, mid_value = 3 if self.mid_keys_fine else 5, 4 if self.mid_values_fine else 6
        return Places(
            token,
            by_tier([starts[7], *[starts[0]] * 3]) + 2 * token,
            2 * by_tier([runs[7].stop, *[runs[0].stop] * 3]),
            [span(1, (5, 3, mid_key), 8, p, planes.key_base) for p in range(planes.key_base + planes.key_refine)],
            [
                span(2, (6, 4, mid_value), 9, p, planes.value_base)
                for p in range(planes.value_base + planes.value_refine)
            ],
        )
