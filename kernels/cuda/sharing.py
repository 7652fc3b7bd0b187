"""Decoding requests that have a split's pages in common, so that a block may read them once for several."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leankv_kernels.host import Numbers, runs
from leankv_kernels.plan import Plan

_MIXERS = np.random.default_rng(0).integers(1 << 62, size=256, dtype=np.int64).astype(np.uint64) * np.uint64(
    2
) + np.uint64(1)


class Sharing(NamedTuple):
    """Splits that several tiles read alike, and those that one reads."""

    tiles: Numbers  # [m] of all groups one after another
    handed: NDArray[np.bool_]  # [m] whether the group's states pass through memory
    first: Numbers  # [g] place of a group in ``tiles``
    size: Numbers  # [g]
    split: Numbers  # [g]
    alone_tile: Numbers  # [k]
    alone_split: Numbers  # [k]


def find_sharing(plan: Plan, tiles: Numbers, splits: Numbers, together: int, split_pages: int) -> Sharing | None:
    """Groups of at most ``together`` tiles for every split that they read alike: the same pages, near at the same ones.

    Args:
        plan: of the forward; where the host does not know its pages nothing is found.
        tiles: of one query each.
        splits: of every tile of the plan, at least 1.
        together: the most tiles of a group.
        split_pages: pages of a split.

    Returns:
        None where nothing is shared.
    """
    before = np.asarray(plan.page_index, dtype=np.int64)
    start = np.asarray(plan.page_indptr, dtype=np.int64)[np.asarray(plan.request, dtype=np.int64)]
    readers = tiles[before[tiles] > 0]
    if plan.host_pages is None or len(np.unique(plan.host_pages[start[readers]])) == len(readers):
        return None
    reader, split = runs(splits[tiles])
    tile = tiles[reader]
    number = split[:, None] * split_pages + np.arange(split_pages)
    inside = number < before[tile, None]
    at = np.where(inside, start[tile, None] + number, 0)
    near = number >= before[tile, None] - plan.near_pages
    read = np.where(inside, 2 * plan.host_pages[at] + near, -1)

    # Sorted by a hash, then told apart by what they read.
    mixed = (read.astype(np.uint64) * _MIXERS[:split_pages]).sum(1, dtype=np.uint64)
    order = np.lexsort((tile, mixed, split))
    tile, split, read = tile[order], split[order], read[order]
    fresh = np.ones(len(tile), bool)
    fresh[1:] = (split[1:] != split[:-1]) | (read[1:] != read[:-1]).any(1)
    begin = np.maximum.accumulate(np.where(fresh, np.arange(len(tile)), 0))
    fresh |= (np.arange(len(tile)) - begin) % together == 0
    first = np.flatnonzero(fresh)
    count = np.diff(np.append(first, len(tile)))
    several = np.repeat(count > 1, count)
    if not several.any():
        return None
    handed = np.repeat(np.logical_or.reduceat(splits[tile] > 1, first), count)
    groups = count > 1
    sizes = count[groups]
    return Sharing(
        tiles=tile[several],
        handed=handed[several],
        first=np.cumsum(sizes) - sizes,
        size=sizes,
        split=split[first[groups]],
        alone_tile=tile[~several],
        alone_split=split[~several],
    )
