"""A second reading of the record's documentation, in numpy: where the runs of a page lie and what their planes say.

Written from the docstring of ``leankv_kernels.layout``; nothing of its arithmetic is used but the header's length. How
wide planes are it asks the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leankv_kernels import HIGH, LOW, MID, PRUNED, RecordLayout
from leankv_kernels.layout import key_planes, value_planes

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int64]


class Part(NamedTuple):
    """Which bits of the master code some planes hold: ``bits`` of them, ``below`` the top ones; the planes' widths."""

    bits: int
    below: int
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """The data of one kind of one KV head's tokens."""

    section: int  # 0 base, 1 refinement, 2 near part
    head: int
    kind: str  # scale, key or value
    part: Part
    positions: list[int]  # of the tokens it holds, in their order
    first: int  # number that the first of them has in the order of all far, or all pruned, tokens
    start: int
    nbytes: int  # without padding


def _size(kind: str, part: Part, first: int, count: int, head_dim: int) -> int:
    if kind == "scale":
        return 8 * count
    if kind == "key":
        return count * head_dim * part.bits // 8
    return sum(len({(first + i) // (8 // width) for i in range(count)}) for width in part.widths) * head_dim


def dim_of(layout: RecordLayout, kind: str) -> int:
    """Channels of keys or of values."""
    return layout.v_head_dim if kind == "value" else layout.head_dim


def runs(layout: RecordLayout, tiers: Bytes) -> list[Run]:
    """Every run of a full record with tiers ``[H, P]``, in the order they lie in."""
    high, low, at, found = layout.high, layout.low, layout.header_bytes, []
    base, fine, whole = {"scale": Part(64, 0)}, {}, {"scale": Part(64, 0)}
    for kind, widths in (("key", key_planes), ("value", value_planes)):
        above, below = (getattr(tier, f"{kind}_bits") for tier in (high, low))
        base[kind] = Part(below, 0, widths(below))
        fine[kind] = Part(above - below, below, widths(above - below))
        whole[kind] = Part(above, 0, base[kind].widths + fine[kind].widths)
    for section in range(3 if layout.near else 2):
        for head, row in enumerate(tiers):
            of = {tier: np.flatnonzero(row == tier).tolist() for tier in (HIGH, MID, LOW, PRUNED)}
            far = of[HIGH] + of[MID] + of[LOW]
            fine_far = {"key": len(of[HIGH]), "value": len(of[HIGH])}
            for kind in fine_far:
                if layout.mid and fine[kind].bits and getattr(layout.mid, f"{kind}_bits") == whole[kind].bits:
                    fine_far[kind] += len(of[MID])
            groups = [
                [(kind, part, far, 0) for kind, part in base.items()],
                [(kind, part, far[: fine_far[kind]], 0) for kind, part in fine.items()],
                [
                    *((kind, part, far[fine_far[kind] :], fine_far[kind]) for kind, part in fine.items()),
                    *((kind, part, of[PRUNED], 0) for kind, part in whole.items()),
                ],
            ][section]
            for kind, part, positions, first in groups:
                size = _size(kind, part, first, len(positions), dim_of(layout, kind))
                found.append(Run(section, head, kind, part, positions, first, at, size))
                at += -(-size // 16) * 16
    return found


def scales(run: Run, record: Bytes) -> NDArray[np.float64]:
    """Key scale, key zero, value scale, value zero of a run's tokens, ``[4, count]``."""
    numbers = record[run.start : run.start + run.nbytes].view(np.float16).astype(np.float64)
    return numbers.reshape(4, len(run.positions))


def codes(run: Run, record: Bytes, head_dim: int) -> Codes:
    """What a run of keys or values says of its tokens' master codes, ``[count, D]``."""
    count, read = len(run.positions), _key_plane if run.kind == "key" else _value_plane
    out: Codes = np.zeros((count, head_dim), dtype=np.int64)
    for width, plane in planes(run, record, head_dim):
        out = (out << width) | read(plane, width, run.first, count, head_dim)
    return out


def planes(run: Run, record: Bytes, head_dim: int) -> Iterator[tuple[int, Bytes]]:
    """Width in bits and bytes of each plane of a run of keys or values; none of an empty one."""
    at = run.start
    for width in run.part.widths if run.positions else ():
        size = _size(run.kind, Part(width, 0, (width,)), run.first, len(run.positions), head_dim)
        yield width, record[at : at + size]
        at += size


def _groups(first: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    """Tokens ``first`` to ``first + count`` cut where a multiple of ``size`` begins, numbered from ``first``."""
    begin = 0
    while begin < count:
        end = min(begin + size - (first + begin) % size, count)
        yield begin, end
        begin = end


def _key_plane(data: Bytes, width: int, first: int, count: int, head_dim: int) -> Codes:
    out = np.empty((count, head_dim), dtype=np.int64)
    for begin, end in _groups(first, count, 16):
        group, data = np.split(data, [(end - begin) * head_dim * width // 8])
        # A word is `width` bytes of 8 channels.
        by_token = group.reshape(head_dim // 8, end - begin, width).astype(np.int64)
        words = (by_token << 8 * np.arange(width)).sum(2).T
        for channel in range(head_dim):
            out[begin:end, channel] = words[:, channel // 8] >> width * (channel % 8) & (2**width - 1)
    assert not data.size
    return out


def _value_plane(data: Bytes, width: int, first: int, count: int, head_dim: int) -> Codes:
    out, share = np.empty((count, head_dim), dtype=np.int64), 8 // width
    for number, (begin, end) in enumerate(_groups(first, count, share)):
        row = data[number * head_dim : (number + 1) * head_dim]
        for i in range(begin, end):
            out[i] = row >> width * ((first + i) % share) & (2**width - 1)
    return out
