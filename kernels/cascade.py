"""Which units of a forward read the same pages the same way: kernels may decode those once for all of them.

Requests that share a prefix have the same page ids at the beginning of their lists; where prefixes branch, groups are
nested. A page's near and far views are different readings, so a group also ends where its units' near windows do not
begin at one page.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LEAST_UNITS, LEAST_TOKENS, LEAST_SAVED = 3, 512, 2048
"""Units of a group, tokens that they share, and tokens whose reading is saved, where it pays at all: the states of rows
have to be handed on, and as few rows as two units may have are read no faster together.
"""
COLUMNS = 5
"""Of a group: its first place in ``members``, how many there are, its first page, the page behind its last, level."""
FIRST_CHUNK = 16

NO_GROUPS = (np.zeros((0, COLUMNS), dtype=np.int64), np.zeros(0, dtype=np.int64))
"""Where nothing is shared."""


def find_groups(pages: np.ndarray, units: np.ndarray, page_size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups of units that ask one query each, as decode does, and begin with the same pages.

    Args:
        pages: int64 ``[sum]``, ``Plan.pages`` on the host.
        units: int64 ``[U, 5]``, ``Plan.units`` on the host.
        page_size: tokens of a page.
        window: pages at the end of a unit's list that are read at the near view.

    Returns:
        groups: int64 ``[G, 5]``, see ``COLUMNS``. A group reads a stretch of its units' lists; another of the level
            before, with all of its units and maybe more, read what precedes, so level 0 begins with the first page.
            Sorted by level.
        members: int64 ``[M]``, the units of each group, ascending.
    """
    asks = np.flatnonzero((units[:, 2] == 1) & (units[:, 3] > 0))
    count, first = units[asks, 3], units[asks, 4]
    if len(np.unique(pages[first])) + LEAST_UNITS - 1 > len(asks):
        return NO_GROUPS
    tree = _Tree(pages, first, count, page_size, window)
    found = sorted(tree.below(np.arange(len(asks)), 0, 0, 0), key=lambda group: group[1])
    if not found:
        return NO_GROUPS
    sizes = np.array([len(some) for some, *_ in found])
    groups = np.array([(0, len(some), start, end, level) for some, level, start, end in found], dtype=np.int64)
    groups[:, 0] = np.cumsum(sizes) - sizes
    return groups, asks[np.concatenate([some for some, *_ in found])]


class _Tree:
    """The lists of some units, where each begins in ``pages`` and how many pages it has."""

    def __init__(self, pages: np.ndarray, first: np.ndarray, count: np.ndarray, page_size: int, window: int) -> None:
        self.pages, self.first, self.count, self.far = pages, first, count, count - window
        self.page_size = page_size

    def below(self, some: np.ndarray, start: int, at: int, level: int) -> Iterator[tuple[np.ndarray, int, int, int]]:
        """Groups (units, level, first page, page behind the last) of units that agree up to page ``at``, and are in a
        group up to page ``start``.
        """
        todo = [(some, start, at, level)]
        while todo:
            some, start, at, level = todo.pop()
            some = some[self.count[some] > at]
            reading = 2 * self.pages[self.first[some] + at] + (self.far[some] <= at)
            order = np.argsort(reading, kind="stable")
            for part in np.split(some[order], np.flatnonzero(np.diff(reading[order])) + 1):
                if len(part) < LEAST_UNITS:
                    continue
                end = self._agree(part, at)
                tokens = (end - start) * self.page_size
                worth = tokens >= LEAST_TOKENS and (len(part) - 1) * tokens >= LEAST_SAVED
                if worth:
                    yield part, level, start, end
                todo.append((part, end, end, level + 1) if worth else (part, start, end, level))

    def _agree(self, some: np.ndarray, at: int) -> int:
        """The page behind the last one that units who read page ``at`` alike all read alike."""
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
