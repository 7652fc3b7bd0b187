"""The work list of a forward: which block reads which pages for which queries.

A block reads one split of a tile's pages or, where there are blocks enough without, all of them. It takes several
queries of one tile at a time, and of decoding requests those that have the split's pages in common, as requests of one
prefix have. No bit of an output depends on any of this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leankv_kernels.cuda.sharing import Sharing, find_sharing
from leankv_kernels.host import Numbers, put, runs
from leankv_kernels.plan import Plan

ENOUGH_BLOCKS = 4096
"""From so many on a block reads all splits of its queries, so that no states pass through memory."""
MOST_PART_BYTES = 1 << 28
"""Of states that do, from which on too."""


class Work(NamedTuple):
    """What one launch is told; tensors as in ``AttendArgs`` of csrc/shape.cuh."""

    together: bool  # whether a block takes several queries
    items: int  # entries of ``table``
    table: Tensor | None  # int32 [1 + items, 4]; None for an entry of every query and split, queries going round first
    queries: Tensor  # int32 [n, 2]


class WorkLists(NamedTuple):
    """Of one forward."""

    works: tuple[Work, ...]  # one launch each
    parts: int  # states that pass through memory, each of one query and split


class _Runs(NamedTuple):
    """Queries that are taken together, which read the same splits."""

    first: Numbers
    size: Numbers
    splits: Numbers

    def items(self, whole: bool) -> Numbers:
        """Entries of the list: a run each, those that read most first; or a split of a run each, by splits."""
        if whole:
            order = np.argsort(-self.splits, kind="stable")
            return np.stack([np.zeros_like(order), self.splits, self.first, self.size], axis=1)[order]
        run, split = runs(self.splits)
        alone = (self.splits[run] == 1).astype(np.int64)
        return np.stack([split, alone, self.first[run], self.size[run]], axis=1)[np.argsort(split, kind="stable")]

    def all_at_once(self, heads: int, part_bytes: int) -> bool:
        """Whether a block should read all splits."""
        parts = int((self.size * self.splits).sum())
        return len(self.first) * heads >= ENOUGH_BLOCKS or parts * part_bytes > MOST_PART_BYTES


def work_of(plan: Plan, together: int, heads: int, split_pages: int, part_bytes: int) -> WorkLists:
    """What a plan's launches do; worked out once for all layers.

    Args:
        plan: of the forward.
        together: how many queries a block can take.
        heads: blocks of an entry.
        split_pages: pages of a split.
        part_bytes: of the states of one query and split, all heads.
    """
    key = ("work", together, heads, split_pages, part_bytes)
    if key not in plan.memo:
        plan.memo[key] = _lists_of_bounds(plan, split_pages, part_bytes) if plan.bounds else _work_lists(plan, *key[1:])
    found = plan.memo[key]
    assert isinstance(found, WorkLists)
    return found


def _lists_of_bounds(plan: Plan, split_pages: int, part_bytes: int) -> WorkLists:
    """Where the host knows bounds of lengths alone: whatever there may be, and blocks see for themselves. Where the
    states of all splits would take too much room a block reads all that its query has."""
    splits = max(1, -(-max(plan.page_index, default=0) // split_pages))
    query = torch.arange(plan.num_tokens, dtype=torch.int32, device=plan.tiles.device)
    parts = plan.num_tokens * splits
    if parts * part_bytes > MOST_PART_BYTES:
        entry = torch.stack([torch.zeros_like(query), torch.full_like(query, splits), query, torch.ones_like(query)], 1)
        table = torch.cat([torch.zeros_like(entry[:1]), entry])
        table[0, 0] = plan.num_tokens
        work = Work(False, plan.num_tokens, table, torch.stack([query, torch.zeros_like(query)], dim=1))
        return WorkLists((work,), 0)
    return WorkLists((Work(False, parts, None, torch.stack([query, query * splits], dim=1)),), parts)


def _work_lists(plan: Plan, together: int, heads: int, split_pages: int, part_bytes: int) -> WorkLists:
    start = np.asarray(plan.q_indptr, dtype=np.int64)
    first, length = start[:-1], np.diff(start)
    splits = np.maximum(-(-np.asarray(plan.page_index, dtype=np.int64) // split_pages), 1)
    ones = np.flatnonzero(length == 1)
    several = _several(first, length, splits, np.flatnonzero(length > 1), together)
    singles = _Runs(first[ones], np.ones_like(ones), splits[ones])
    whole, singles_whole = (x.all_at_once(heads, part_bytes) for x in (several, singles))

    # By tile, whether its queries' states pass through memory.
    handed = (splits > 1) & ~np.where(length == 1, singles_whole, whole)
    many, few, query = several.items(whole), singles.items(singles_whole), np.arange(start[-1])
    sharing = None if together == 1 or singles_whole else find_sharing(plan, ones, splits, together, split_pages)
    if sharing is not None:
        handed[sharing.tiles[sharing.handed]] = True
        joined, few = _shared_items(sharing, first, splits, len(query))
        many, query = np.concatenate([joined, many]), np.concatenate([query, first[sharing.tiles]])

    parts = np.repeat(handed * splits, length)
    queries = np.stack([query, (np.cumsum(parts) - parts)[query]], axis=1)
    lists = [(False, np.concatenate([many, few]))] if together == 1 else [(True, many), (False, few)]
    return WorkLists(_put([x for x in lists if len(x[1])], queries, plan.tiles.device), int(parts.sum()))


def _several(first: Numbers, length: Numbers, splits: Numbers, tiles: Numbers, together: int) -> _Runs:
    """Tiles of several queries, ``together`` of them at a time."""
    number, rank = runs(-(-length[tiles] // together))
    tile, rank = tiles[number], together * rank
    return _Runs(first[tile] + rank, np.minimum(together, length[tile] - rank), splits[tile])


def _shared_items(sharing: Sharing, first: Numbers, splits: Numbers, queries: int) -> tuple[Numbers, Numbers]:
    """Entries of several tiles, whose queries follow ``queries`` others, and those of one."""
    joined = np.stack(
        [sharing.split, np.add.reduceat(sharing.handed, sharing.first) == 0, queries + sharing.first, sharing.size],
        axis=1,
    )
    tile = sharing.alone_tile
    few = np.stack([sharing.alone_split, splits[tile] == 1, first[tile], np.ones_like(tile)], axis=1)
    return joined, few


def _put(lists: list[tuple[bool, Numbers]], queries: Numbers, device: torch.device) -> tuple[Work, ...]:
    """Everything to the device in one copy."""
    tables = [np.concatenate([[[len(items), 0, 0, 0]], items]) for _, items in lists]
    *there, of_queries = put(device, *(x.astype(np.int32) for x in (*tables, queries)))
    found = zip(lists, there, strict=True)
    return tuple(Work(many, len(items), table, of_queries) for (many, items), table in found)
