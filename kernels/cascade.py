"""Which tiles of a forward read the same pages the same way: kernels may decode those once for all of them.

Requests that share a prefix have the same page ids at the beginning of their lists; where prefixes branch, groups are
nested. A page's near and far views are different readings, so a group also ends where its tiles' near pages do not
begin at one page.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LEAST_TILES, LEAST_TOKENS, LEAST_SAVED = 3, 512, 2048
"""Tiles of a group, tokens that they share, and tokens whose reading is saved, where it pays at all: the states of rows
have to be handed on, and as few rows as two tiles may have are read no faster together.
"""
COLUMNS = 5
"""Of a group: its first place in ``members``, how many there are, its first page, the page behind its last, depth."""
FIRST_CHUNK = 16

NO_GROUPS = (np.zeros((0, COLUMNS), dtype=np.int64), np.zeros(0, dtype=np.int64))
"""Where nothing is shared."""


def find_groups(pages: np.ndarray, tiles: np.ndarray, page_size: int, near_pages: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups of tiles that ask one query each, as decode does, and begin with the same pages.

    Args:
        pages: int64 ``[sum]``, ``Plan.pages`` on the host.
        tiles: int64 ``[U, 5]``, ``Plan.tiles`` on the host.
        page_size: tokens of a page.
        near_pages: pages at the end of a tile's list that are read at the near view.

    Returns:
        groups: int64 ``[G, 5]``, see ``COLUMNS``. A group reads a stretch of its tiles' lists; another of the depth
            before, with all of its tiles and maybe more, read what precedes, so depth 0 begins with the first page.
            Sorted by depth.
        members: int64 ``[M]``, the tiles of each group, ascending.
    """
    asks = np.flatnonzero((tiles[:, 2] == 1) & (tiles[:, 3] > 0))
    count, first = tiles[asks, 3], tiles[asks, 4]
    if len(np.unique(pages[first])) + LEAST_TILES - 1 > len(asks):
        return NO_GROUPS
    tree = _Tree(pages, first, count, page_size, near_pages)
    found = sorted(tree.below(np.arange(len(asks)), 0, 0, 0), key=lambda group: group[1])
    if not found:
        return NO_GROUPS
    sizes = np.array([len(some) for some, *_ in found])
    groups = np.array([(0, len(some), start, end, depth) for some, depth, start, end in found], dtype=np.int64)
    groups[:, 0] = np.cumsum(sizes) - sizes
    return groups, asks[np.concatenate([some for some, *_ in found])]


class _Tree:
    """The lists of some tiles, where each begins in ``pages`` and how many pages it has."""

    def __init__(
        self, pages: np.ndarray, first: np.ndarray, count: np.ndarray, page_size: int, near_pages: int
    ) -> None:
        self.pages, self.first, self.count, self.far = pages, first, count, count - near_pages
        self.page_size = page_size

    def below(self, some: np.ndarray, start: int, at: int, depth: int) -> Iterator[tuple[np.ndarray, int, int, int]]:
        """Groups (tiles, depth, first page, page behind the last) of tiles that agree up to page ``at``, and are in a
        group up to page ``start``.
        """
        todo = [(some, start, at, depth)]
        while todo:
            some, start, at, depth = todo.pop()
            some = some[self.count[some] > at]
            reading = 2 * self.pages[self.first[some] + at] + (self.far[some] <= at)
            order = np.argsort(reading, kind="stable")
            for part in np.split(some[order], np.flatnonzero(np.diff(reading[order])) + 1):
                if len(part) < LEAST_TILES:
                    continue
                end = self._agree(part, at)
                tokens = (end - start) * self.page_size
                worth = tokens >= LEAST_TOKENS and (len(part) - 1) * tokens >= LEAST_SAVED
                if worth:
                    yield part, depth, start, end
                todo.append((part, end, end, depth + 1) if worth else (part, start, end, depth))

    def _agree(self, some: np.ndarray, at: int) -> int:
        """The page behind the last one that tiles who read page ``at`` alike all read alike."""
        count, far = self.count[some], self.far[some]
        alike = bool((count == count[0]).all()) or bool((far <= at).all())
        end = int(count.min() if alike else far.min())
        chunk = FIRST_CHUNK
        while at < end:
            stop = min(at + chunk, end)
            lists = self.pages[self.first[some, None] + np.arange(at, stop)]
            same = (lists == lists[0]).all(0)
            if not same.all():
                return at + int(same.argmin())
            at, chunk = stop, 2 * chunk
        return end
