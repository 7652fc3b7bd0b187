"""Which pages of the tree are cut next under pressure, and how deep: the order of worth, least recently used first.

Knows nodes only by what :class:`Nodes` says of them, so it can be read and tested without SGLang.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from leankv_kernels.layout import LEVEL_BASE, LEVEL_FAR
from leankv_sglang.kvcache.ledger import Ledger, Pages
from leankv_sglang.kvcache.tree.trim import trim_steps

STEP_PAGES = 64
"""Pages that one step takes at most, before it is asked whether that was enough."""


class ShrinkStep(IntEnum):
    """What is cut, in this order; each step is taken as far as it goes before the next begins."""

    TRIM_INSIDE = 0
    """Near parts of pages inside nodes, where no hit ends."""
    TRIM_BOUNDARIES = 1
    """Near parts at boundaries where hits seldom end."""
    DEMOTE = 2
    """Near parts and refinement of whole nodes."""


class Nodes(Protocol):
    """What has to be known of a tree's nodes."""

    def pages(self, node: Any) -> Pages:
        """Logical pages of a node, int64 ``[n]``."""

    def start(self, node: Any) -> int:
        """Pages of the path before a node."""

    def hits_end_at(self, node: Any) -> bool:
        """Whether hits are likely to end where a node ends."""

    def is_locked(self, node: Any) -> bool:
        """Whether a running request holds a node."""

    def priority(self, node: Any) -> Any:
        """Of two nodes the lesser one goes first."""


class Shrinker:
    """Chooses pages to cut, node by node.

    Nodes are candidates until nothing more of them can be cut, and become candidates again when something about them
    changes (:meth:`reconsider`). A round keeps one heap of candidates per step, made when the round first needs
    it; :meth:`begin` ends the round, and is due whenever priorities may have changed.

    Args:
        nodes: the tree.
        ledger: prices, levels and locks of pages.
        cut: cuts settled pages to a level and returns the units gained.
        near_pages: pages that a hit reads near.
    """

    def __init__(self, nodes: Nodes, ledger: Ledger, cut: Callable[[Pages, int], int], near_pages: int) -> None:
        self._nodes, self._ledger, self._cut, self._near_pages = nodes, ledger, cut, near_pages
        self.clear()

    def clear(self) -> None:
        """Forget every node."""
        self._candidates: dict[ShrinkStep, set[Hashable]] = {step: set() for step in ShrinkStep}
        self.begin()

    def begin(self) -> None:
        """Begin a new round."""
        self._heaps: dict[ShrinkStep, list[Any]] = {}

    def reconsider(self, node: Hashable) -> None:
        """Take note that a node is new or has changed."""
        for nodes in self._candidates.values():
            nodes.add(node)

    def forget(self, node: Hashable) -> None:
        """Take note that a node is gone."""
        for nodes in self._candidates.values():
            nodes.discard(node)

    def step(self, last: ShrinkStep, only: Callable[[Any], bool] = lambda _node: True) -> int:
        """Cut some pages of the one node that matters least; returns the units gained, 0 when nothing is left to cut.

        Args:
            last: how far to go.
            only: of which nodes; the same throughout a round.
        """
        for step in ShrinkStep:
            if step > last:
                break
            if step not in self._heaps:
                heap = [(self._nodes.priority(node), node) for node in self._candidates[step]]
                heapq.heapify(heap)
                self._heaps[step] = heap
            heap = self._heaps[step]
            while heap:
                node = heap[0][1]
                if node in self._candidates[step] and only(node) and (gained := self.shrink(node, step)):
                    return gained
                heapq.heappop(heap)
        return 0

    def shrink(self, node: Any, step: ShrinkStep) -> int:
        """Cut what one step takes of a node, the last pages first; returns the units gained."""
        pages, level = self._nodes.pages(node), LEVEL_FAR
        if step == ShrinkStep.DEMOTE:
            level = LEVEL_BASE
            chosen = np.full(len(pages), not self._nodes.is_locked(node))
        else:
            ends = self._nodes.hits_end_at(node)
            chosen = trim_steps(self._nodes.start(node), len(pages), ends, self._near_pages) <= step
        chosen &= ~self._ledger.near_locked(pages) & (self._ledger.gain(pages, level) > 0)
        cut = pages[chosen][-STEP_PAGES:]
        if not len(cut):
            # Reconsidered when something about the node changes.
            if self._ledger.settled[pages].all():
                self._candidates[step].discard(node)
            return 0
        return self._cut(cut, level)
