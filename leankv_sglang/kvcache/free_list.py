"""The logical pages that nobody holds, on the host: what a forward gets is known before it is launched."""

from __future__ import annotations

import numpy as np

from leankv_sglang.kvcache.ledger import Pages


class FreeList:
    """Free pages as a stack, in the order of SGLang's own list: what was given last is taken first.

    Args:
        sort: take the lowest ids first instead.
    """

    def __init__(self, sort: bool = False) -> None:
        self._sort = sort
        self.clear(0)

    def clear(self, num_pages: int) -> None:
        """Make pages 1 to ``num_pages`` free."""
        self._stack = np.arange(num_pages, 0, -1, dtype=np.int64)
        self._count, self._sorted = num_pages, True

    def __len__(self) -> int:
        return self._count

    def take(self, count: int) -> Pages:
        """The next ``count`` pages, int64 ``[count]``; asks for no more than there are."""
        assert count <= self._count, "more pages are taken than are free"
        if self._sort and not self._sorted:
            self._stack[: self._count] = np.sort(self._stack[: self._count])[::-1]
            self._sorted = True
        self._count -= count
        return self._stack[self._count : self._count + count][::-1].copy()

    def give(self, pages: Pages) -> None:
        """Take pages back; the first of them is the next to be taken."""
        assert self._count + len(pages) <= len(self._stack), "more pages are given back than there are"
        self._stack[self._count : self._count + len(pages)] = pages[::-1]
        self._count += len(pages)
        self._sorted = False

    def ids(self) -> Pages:
        """All free pages, the next one first."""
        return self._stack[: self._count][::-1].copy()
