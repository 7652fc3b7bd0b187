"""Where runs, and the tokens in them, lie in a record; the order of the runs is written down in :class:`Runs` alone."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from leankv_kernels.layout.format import (
    ALIGN,
    HIGH,
    KEY_GROUP,
    KEY_WORD,
    LOW,
    MID,
    PRUNED,
    SCALE_BYTES,
    TierCounts,
    key_planes,
    value_planes,
)

if TYPE_CHECKING:
    from leankv_kernels.layout.sizes import RecordLayout

BASE, REFINE, NEAR = range(3)
"""The sections of a record behind its header."""
T = TypeVar("T")
NOWHERE = -(1 << 40)
"""The start of what a record does not keep: whatever is added to it, it stays negative."""


class Span(NamedTuple):
    """Where one plane lies: its first byte, and the range of token numbers it holds; integer tensors of one shape."""

    start: Tensor
    first: Tensor
    stop: Tensor
    width: int  # bits of a code

    def key_word(self, token: Tensor, word: Tensor, head_dim: int) -> Tensor:
        """Byte offset of a token's word of ``width`` bytes: channels ``8 * word`` to ``8 * word + 7``."""
        group = token // KEY_GROUP * KEY_GROUP
        begin = torch.maximum(group, self.first)
        side = torch.minimum(group + KEY_GROUP, self.stop) - begin
        row = head_dim * self.width // 8
        return self.start + (begin - self.first) * row + self.width * (word * side + token - begin)

    def value_byte(self, token: Tensor, channel: Tensor, head_dim: int) -> Tensor:
        """Byte offset that holds a token's code of a channel, at bits ``width * (token % share)``."""
        return self.start + (token // self.share - self.first // self.share) * head_dim + channel

    def for_each(self) -> Span:
        """The same with one more axis behind, over which the words or channels of a token lie."""
        return Span(self.start[..., None], self.first[..., None], self.stop[..., None], self.width)

    @property
    def share(self) -> int:
        """Tokens that share a byte of a value plane: a quad, at two bits."""
        return 8 // self.width


class Run(NamedTuple):
    """Data of one kind of one KV head: tokens ``first`` to ``stop`` of their order."""

    section: int
    kind: Literal["scale", "key", "value"]
    widths: tuple[int, ...]  # bits of a code in each plane, top bits first; scales have none
    first: Tensor
    stop: Tensor
    dim: int  # channels

    def plane_bytes(self, width: int) -> Tensor:
        """Bytes of one plane, tensor of the run's shape."""
        count = self.stop - self.first
        if self.kind == "key":
            return count * (self.dim * width // KEY_WORD)
        share = 8 // width
        bytes_deep = -(-self.stop // share) - self.first // share
        return torch.where(count > 0, bytes_deep, 0) * self.dim

    def nbytes(self) -> Tensor:
        """Bytes of the run with its padding."""
        if self.kind == "scale":
            total = (self.stop - self.first) * SCALE_BYTES
        else:
            total = torch.zeros_like(self.first)
            for width in self.widths:
                total = total + self.plane_bytes(width)
        return (total + (ALIGN - 1)) // ALIGN * ALIGN

    def spans(self, start: Tensor) -> list[Span]:
        """Its planes, if it begins at byte ``start``."""
        sizes = [self.plane_bytes(width) for width in self.widths]
        starts = accumulate(sizes[:-1], initial=start)
        return [Span(at, self.first, self.stop, width) for at, width in zip(starts, self.widths, strict=False)]


class Runs(NamedTuple, Generic[T]):
    """Something of every run of a KV head, in the order in which they lie in their sections.

    Far tokens come high first, then mid, then low; ``refined`` and ``rest`` are the first so many of them, whose
    refinement outlives the near part, and the others. A layout without a near part keeps nothing of the last five.
    """

    far_scales: T
    far_keys: T
    far_values: T
    refined_keys: T
    refined_values: T
    rest_keys: T
    rest_values: T
    pruned_scales: T
    pruned_keys: T
    pruned_values: T


def runs_of(layout: RecordLayout, counts: TierCounts) -> Runs[Run]:
    """The runs of heads with these counts."""
    none, far, pruned = torch.zeros_like(counts.high), counts.far, layout.page_size - counts.far
    keys, values = layout.refined(counts)
    base_keys, base_values = key_planes(layout.low.key_bits), value_planes(layout.low.value_bits)
    more_keys, more_values = key_planes(layout.key_refine_bits), value_planes(layout.value_refine_bits)
    return Runs(
        far_scales=Run(BASE, "scale", (), none, far, 0),
        far_keys=Run(BASE, "key", base_keys, none, far, layout.head_dim),
        far_values=Run(BASE, "value", base_values, none, far, layout.v_head_dim),
        refined_keys=Run(REFINE, "key", more_keys, none, keys, layout.head_dim),
        refined_values=Run(REFINE, "value", more_values, none, values, layout.v_head_dim),
        rest_keys=Run(NEAR, "key", more_keys, keys, far, layout.head_dim),
        rest_values=Run(NEAR, "value", more_values, values, far, layout.v_head_dim),
        pruned_scales=Run(NEAR, "scale", (), none, pruned, 0),
        pruned_keys=Run(NEAR, "key", base_keys + more_keys, none, pruned, layout.head_dim),
        pruned_values=Run(NEAR, "value", base_values + more_values, none, pruned, layout.v_head_dim),
    )


def section_bytes(layout: RecordLayout, counts: TierCounts) -> list[Tensor]:
    """Bytes of each section of every KV head; without a near part the last is empty."""
    parts = [torch.zeros_like(counts.high) for _ in (BASE, REFINE, NEAR)]
    for run in runs_of(layout, counts):
        if layout.near or run.section != NEAR:
            parts[run.section] = parts[run.section] + run.nbytes()
    return parts


class Sections(NamedTuple):
    """Where the sections of records start, int64 ``[n]``, and per KV head ``[n, H]``; ``end`` is the full length."""

    base: Tensor
    refine: Tensor
    near: Tensor
    end: Tensor


class Places(NamedTuple):
    """Where every token of n records lies, integers ``[n, H, P]``; starts are negative where nothing is kept."""

    token: Tensor  # number in its order: of far tokens, high first, or of pruned ones
    scale: Tensor  # byte offset of the key scale
    scale_stride: Tensor  # bytes from there to the key zero, on to the value scale, on to the value zero
    key: list[Span]  # per plane of the high tier, top bits first
    value: list[Span]


def find_places(layout: RecordLayout, tiers: Tensor) -> Places:
    """See :meth:`RecordLayout.places`."""
    # [tier, n, H, P], tiers in the order of their codes
    member = torch.stack([tiers == PRUNED, tiers == LOW, tiers == HIGH, tiers == MID])
    upto = member.cumsum(3)
    _, low, high, mid = upto[..., -1]
    counts = TierCounts(high, mid, low)
    ahead = high[..., None] * (member[LOW] | member[MID]) + mid[..., None] * member[LOW]
    token = upto.gather(0, tiers.long()[None])[0] - 1 + ahead

    runs = runs_of(layout, counts)
    next_in = list(layout.sections(counts)[:3])
    starts = []
    for run in runs:
        if run.section == NEAR and not layout.near:
            starts.append(torch.full_like(high, NOWHERE))
            continue
        starts.append(next_in[run.section])
        next_in[run.section] = next_in[run.section] + run.nbytes()
    start = Runs(*starts)
    planes = Runs(*(run.spans(at) for run, at in zip(runs, starts, strict=True)))

    def by_tier(pruned: Tensor, low: Tensor, high: Tensor, mid: Tensor) -> Tensor:
        return torch.stack([pruned, low, high, mid], dim=-1).gather(2, tiers.long())

    def choose(
        pruned: list[Span], base: list[Span], rest: list[Span], refined: list[Span], mid: list[Span]
    ) -> list[Span]:
        """Every token's planes: base codes, then refinement, which a low token has in ``rest``."""
        spans = [(whole, far, far, far) for whole, far in zip(pruned, base, strict=False)]
        spans += zip(pruned[len(base) :], rest, refined, mid, strict=True)
        return [
            Span(
                by_tier(*(span.start for span in four)),
                by_tier(*(span.first for span in four)),
                by_tier(*(span.stop for span in four)),
                four[0].width,
            )
            for four in spans
        ]

    keys = planes.refined_keys if layout.mid_keys_fine else planes.rest_keys
    values = planes.refined_values if layout.mid_values_fine else planes.rest_values
    scales = by_tier(start.pruned_scales, start.far_scales, start.far_scales, start.far_scales)
    far, pruned = runs.far_scales.stop, runs.pruned_scales.stop
    return Places(
        token,
        scales + 2 * token,
        2 * by_tier(pruned, far, far, far),
        choose(planes.pruned_keys, planes.far_keys, planes.rest_keys, planes.refined_keys, keys),
        choose(planes.pruned_values, planes.far_values, planes.rest_values, planes.refined_values, values),
    )
