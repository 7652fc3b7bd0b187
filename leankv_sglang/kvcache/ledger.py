"""The ledger: what every page costs, in units that SGLang's scheduler can count.

A unit is what one token takes at worst: the bytes a page reserves before its commit, by its tokens. SGLang counts its
pool in tokens, so its ``max_total_tokens`` are units here and keep their meaning in bytes. A page reserves a unit per
token and is trued up once it is committed; trimming and demoting make it cheaper still. Logical pages outnumber what
units could hold uncompressed, and a page never costs less than their ratio says, so units run out before pages do.
Host arrays only: nothing here asks the device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leankv_kernels.layout import LEVEL_NEAR

LOGICAL_FACTOR = 16
"""Logical pages for each page of units: the most that pages can shrink to and still be counted."""
MEAN_PAGES = 256
"""Pages over which the running mean of prices reaches back."""

Pages = NDArray[np.int64]


class Ledger:
    """Prices, levels and near locks of logical pages 1 to ``num_pages``, and the units left.

    Args:
        units: units of the pool, a multiple of ``page_size``.
        page_size: tokens of a page, so units of one that is not committed.
        worst_blocks: blocks a page reserves in all layers.
    """

    def __init__(self, units: int, page_size: int, worst_blocks: int) -> None:
        self.units, self.page_size, self.worst_blocks = units, page_size, worst_blocks
        self.num_pages = units // page_size * LOGICAL_FACTOR
        self.least = -(-page_size // LOGICAL_FACTOR)
        # Told of pages whose price has changed and by how much; the tree listens.
        self.on_reprice: Callable[[Pages, NDArray[np.int64]], None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget every page."""
        n = self.num_pages + 1
        self.free_units = self.units
        self.price = np.zeros(n, np.int64)
        """Units a page is charged; 0 for one that is free."""
        self.level = np.full(n, LEVEL_NEAR, np.int8)
        """What a page's records hold, a level of the layout; all of it before the commit."""
        self.settled = np.zeros(n, bool)
        """Whether the true costs of a page are known."""
        self._near_locks = np.zeros(n, np.int32)
        self.epoch = np.zeros(n, np.int64)
        """Counts how often a page was opened, so that what was said of an earlier life is not taken for this one."""
        self._cost = np.full((n, LEVEL_NEAR + 1), self.page_size, np.int64)
        self._blocks = np.zeros((n, LEVEL_NEAR + 1), np.int32)
        self._tokens = np.full((n, 3), -1, np.int32)  # high, mid, low; -1 while they are not known
        self._mean = np.full(LEVEL_NEAR + 1, float(self.page_size))

    def units_of(self, blocks: NDArray[np.integer]) -> NDArray[np.int64]:
        """Units that cover so many blocks."""
        return np.maximum(-(-blocks.astype(np.int64) * self.page_size // self.worst_blocks), self.least)

    def mean_price(self, level: int) -> float:
        """Units per token that pages lately cost at a level; at most 1."""
        return float(self._mean[level]) / self.page_size

    def open(self, pages: Pages, prices: Pages | None = None) -> None:
        """Reserve pages that were free, at their worst case, or at prices that are known."""
        assert not self.price[pages].any(), "a page was handed out twice"
        self.price[pages] = self.page_size if prices is None else prices
        self.level[pages] = LEVEL_NEAR
        self.settled[pages] = False
        self.epoch[pages] += 1
        self._cost[pages, 1:] = self.page_size
        self._blocks[pages] = 0
        self._tokens[pages] = -1
        self.free_units -= int(self.price[pages].sum())
        assert self.free_units >= 0, "more pages were handed out than the pool has units for"

    def close(self, pages: Pages) -> None:
        """Return pages, none of them twice."""
        prices = self.price[pages]
        assert prices.all(), "a page was freed that was free"
        self.free_units += int(prices.sum())
        self.price[pages] = 0

    def settle(self, pages: Pages, epochs: Pages, blocks: NDArray[np.integer]) -> None:
        """Take note of the true costs of committed pages.

        Args:
            pages: ``[n]``.
            epochs: ``[n]``, their epochs at the commit; a page freed since is passed over.
            blocks: ``[n, 3]``, blocks in all layers at levels base, far and near.
        """
        alive = (self.epoch[pages] == epochs) & (self.price[pages] > 0)
        pages, costs = pages[alive], self.units_of(blocks[alive])
        self._cost[pages, 1:] = costs
        self.settled[pages] = True
        self._reprice(pages)
        if len(pages):
            keep = (1 - 1 / MEAN_PAGES) ** len(pages)
            self._mean[1:] = keep * self._mean[1:] + (1 - keep) * costs.mean(0)

    def expect(self, pages: Pages) -> None:
        """Take note that pages are being committed: they are reported at their worst until their counts are here."""
        self._blocks[pages, 1:] = self.worst_blocks

    def note_counts(self, pages: Pages, epochs: Pages, counts: NDArray[np.integer]) -> None:
        """Take note of what records of committed pages hold on this rank, for reports; prices are of all ranks.

        Args:
            pages, epochs: as for :meth:`settle`.
            counts: ``[n, 6]``, see ``RecordStore.count_pages``.
        """
        alive = self.epoch[pages] == epochs
        self._blocks[pages[alive], 1:] = counts[alive, :3]
        self._tokens[pages[alive]] = counts[alive, 3:]

    def blocks_held(self, pages: Pages, at_most: int = LEVEL_NEAR) -> NDArray[np.int64]:
        """Blocks that pages hold in all layers at their present level, or would hold were they cut down to ``at_most``;
        0 for those that were not committed."""
        return self._blocks[pages, np.minimum(self.level[pages], at_most)].astype(np.int64)

    def tokens_held(self, pages: Pages) -> tuple[int, NDArray[np.int64]]:
        """How many of these pages have known counts, and their tokens of all layers and heads: high, mid and low."""
        tokens = self._tokens[pages]
        known = tokens[:, 0] >= 0
        return int(known.sum()), tokens[known].sum(0, dtype=np.int64)

    def lock_near(self, pages: Pages) -> None:
        """Note that one running request more reads these pages near, none of them twice."""
        self._near_locks[pages] += 1

    def unlock_near(self, pages: Pages) -> None:
        """Undo one :meth:`lock_near`."""
        self._near_locks[pages] -= 1

    def near_locked(self, pages: Pages | slice = slice(None)) -> NDArray[np.bool_]:
        """Which pages some running request reads near, so that their near part must stay."""
        return self._near_locks[pages] > 0

    def gain(self, pages: Pages, level: int) -> NDArray[np.int64]:
        """Units that cutting pages to a level gives back, 0 for pages not settled yet."""
        return np.where(self.settled[pages], np.maximum(self.price[pages] - self._cost[pages, level], 0), 0)

    def cut(self, pages: Pages, level: int) -> int:
        """Note that settled pages are cut to a level; returns the units gained."""
        before = self.free_units
        self.level[pages] = np.minimum(self.level[pages], level)
        self._reprice(pages)
        return self.free_units - before

    def swap(self, a: Pages, b: Pages) -> None:
        """Note that committed pages ``a`` and ``b`` exchange what they hold; what is not settled keeps its worst price
        until it is, under its new id."""
        for column in (self.level, self._cost, self._blocks, self._tokens, self.settled):
            column[a], column[b] = column[b], column[a].copy()
        self._reprice(np.concatenate([a, b]))

    def _reprice(self, pages: Pages) -> None:
        price = self._cost[pages, self.level[pages]]
        delta = price - self.price[pages]
        self.price[pages] = price
        self.free_units -= int(delta.sum())
        if self.on_reprice is not None and delta.any():
            self.on_reprice(pages, delta)

    def audit(self) -> list[str]:
        """One sentence for each way in which the books contradict themselves."""
        problems = []
        if (held := int(self.price.sum())) + self.free_units != self.units:
            problems.append(f"{held} units held and {self.free_units} free are not {self.units}")
        if self.free_units < 0:
            problems.append(f"{-self.free_units} units are missing")
        if self._near_locks.min() < 0:
            problems.append("a page's near lock was released once too often")
        if bad := int((self.near_locked() & (self.level < LEVEL_NEAR)).sum()):
            problems.append(f"{bad} pages are cut although a running request reads them near")
        return problems
