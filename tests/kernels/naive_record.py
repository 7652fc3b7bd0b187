"""A second reading of the record's documentation, in numpy: where the runs of a page lie and what their planes say.

Written from the docstring of ``leankv_kernels.layout``; nothing of its arithmetic is used but the header's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leankv_kernels import HIGH, LOW, MID, PRUNED, RecordLayout

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int64]


class Part(NamedTuple):
    """Which bits of the master code some planes hold: ``bits`` of them, ``below`` the top ones."""

    bits: int
    below: int


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
    quads = {(first + i) // 4 for i in range(count)}
    return len(quads) * head_dim * part.bits // 2


def runs(layout: RecordLayout, tiers: Bytes) -> list[Run]:
    """Every run of a full record with tiers ``[H, P]``, in the order they lie in."""
    high, low, at, found = layout.high, layout.low, layout.header_bytes, []
    base = {"scale": Part(64, 0), "key": Part(low.key_bits, 0), "value": Part(low.value_bits, 0)}
    fine = {
        "key": Part(high.key_bits - low.key_bits, low.key_bits),
        "value": Part(high.value_bits - low.value_bits, low.value_bits),
    }
    whole = {"scale": Part(64, 0), "key": Part(high.key_bits, 0), "value": Part(high.value_bits, 0)}
    for section in range(3 if layout.near else 2):
        for head, row in enumerate(tiers):
            of = {tier: np.flatnonzero(row == tier).tolist() for tier in (HIGH, MID, LOW, PRUNED)}
            far = of[HIGH] + of[MID] + of[LOW]
            fine_far = {"key": len(of[HIGH]), "value": len(of[HIGH])}
            for kind in fine_far:
                if layout.mid and fine[kind].bits and getattr(layout.mid, f"{kind}_bits") == sum(fine[kind]):
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
                size = _size(kind, part, first, len(positions), layout.head_dim)
                found.append(Run(section, head, kind, part, positions, first, at, size))
                at += -(-size // 16) * 16
    return found


def scales(run: Run, record: Bytes) -> NDArray[np.float64]:
    """Key scale, key zero, value scale, value zero of a run's tokens, ``[4, count]``."""
    numbers = record[run.start : run.start + run.nbytes].view(np.float16).astype(np.float64)
    return numbers.reshape(4, len(run.positions))


def codes(run: Run, record: Bytes, head_dim: int) -> Codes:
    """What a run of keys or values says of its tokens' master codes, ``[count, D]``."""
    width = {"key": 4, "value": 2}[run.kind]
    data, count = record[run.start : run.start + run.nbytes], len(run.positions)
    out: Codes = np.zeros((count, head_dim), dtype=np.int64)
    if run.part.bits and count:
        read = _key_plane if run.kind == "key" else _value_plane
        for plane in data.reshape(run.part.bits // width, -1):
            out = (out << width) | read(plane, run.first, count, head_dim)
    return out


def _groups(first: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    """Tokens ``first`` to ``first + count`` cut where a multiple of ``size`` begins, numbered from ``first``."""
    begin = 0
    while begin < count:
        end = min(begin + size - (first + begin) % size, count)
        yield begin, end
        begin = end


def _key_plane(data: Bytes, first: int, count: int, head_dim: int) -> Codes:
    out, words = np.empty((count, head_dim), dtype=np.int64), data.view("<u4").astype(np.int64)
    for begin, end in _groups(first, count, 16):
        group, words = np.split(words, [(end - begin) * head_dim // 8])
        by_token = group.reshape(head_dim // 8, end - begin).T
        for channel in range(head_dim):
            out[begin:end, channel] = by_token[:, channel // 8] >> 4 * (channel % 8) & 15
    assert not words.size
    return out


def _value_plane(data: Bytes, first: int, count: int, head_dim: int) -> Codes:
    out = np.empty((count, head_dim), dtype=np.int64)
    for quad, (begin, end) in enumerate(_groups(first, count, 4)):
        row = data[quad * head_dim : (quad + 1) * head_dim]
        for i in range(begin, end):
            out[i] = row >> 2 * ((first + i) % 4) & 3
    return out
