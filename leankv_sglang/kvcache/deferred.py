"""What is done to records at the start of the next forward: late commits, and what the scheduler's side has ordered."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from leankv_kernels import Ops, RecordStore
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.transfer import put


class FilledPages(NamedTuple):
    """Pages whose last tokens a decode step writes. No query of that step reads them but as its own raw page, so their
    commit may wait; the open pages of their rows hold them until the next forward writes there."""

    pages: Tensor
    """int64 ``[n]``, logical ids."""
    rows: Tensor
    """int64 ``[n]``, request rows."""
    page_index: Tensor
    """int64 ``[n]``, pages of the request before each."""
    alphas: Tensor | None
    """float64 ``[layers, n, 3, H]``, thresholds; None where all have the server's own."""


class DeferredWork:
    """Frees, cuts, swaps and other work in the order given, a launch or few for each run of the same kind.

    They wait for the next forward because the device still works on earlier ones, which read these records.
    """

    def __init__(self, store: RecordStore, ops: Ops) -> None:
        self.store, self.ops = store, ops
        self._queue: list[tuple[str, list[Pages], list[Pages]] | Callable[[], None]] = []

    def free(self, pages: Pages) -> None:
        """Free what pages hold."""
        self._add("free", pages, pages)

    def cut(self, pages: Pages, level: int) -> None:
        """Cut records to a level."""
        self._add("cut", pages, np.full(len(pages), level))

    def swap(self, a: Pages, b: Pages) -> None:
        """Exchange what pages hold."""
        self._add("swap", a, b)

    def then(self, work: Callable[[], None]) -> None:
        """Do something else with records, behind all that was ordered before."""
        self._queue.append(work)

    def _add(self, kind: str, pages: Pages, other: Pages) -> None:
        if not len(pages):
            return
        last = self._queue[-1] if self._queue else None
        if last is None or callable(last) or last[0] != kind or kind == "swap":
            last = (kind, [], [])
            self._queue.append(last)
        last[1].append(pages)
        last[2].append(other)

    def run(self) -> bool:
        """Carry everything out; returns whether there was anything."""
        queue, self._queue = self._queue, []
        device = self.store.blocks.device
        for work in queue:
            if callable(work):
                work()
                continue
            kind, pages, other = work
            ids, more = np.concatenate(pages), np.concatenate(other)
            if kind == "swap":
                self.store.swap(*put(np.stack([ids, more]), device))
                continue
            # A page may be named more than once: freed, handed out and freed again, or cut and cut deeper.
            unique, last = np.unique(ids[::-1], return_index=True)
            if kind == "free":
                self.ops.free_pages(self.store, put(unique, device))
            else:
                self.ops.cut_pages(self.store, *put(np.stack([unique, more[::-1][last]]), device))
        return bool(queue)

    def clear(self) -> None:
        """Forget what was ordered."""
        self._queue.clear()
