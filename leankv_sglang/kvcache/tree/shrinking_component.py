"""Memory back from the tree: near parts are cut, then refinements where that is allowed, and leaves are dropped.

Near parts go first unless that was lately seen to cost more than dropping leaves (:class:`Regret`): where requests
branch anywhere, a hit ends at any page, and reads near parts that trimming would have taken.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer

from leankv_kernels.layout import LEVEL_FAR, LEVEL_NEAR
from leankv_sglang.config import required_config
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.tree.paged_component import FULL, PagedComponent
from leankv_sglang.kvcache.tree.regret import Regret, marks_after
from leankv_sglang.kvcache.tree.shrink import Shrinker, ShrinkStep

MARKS_A_PAGE = 4
"""Dropped pages that are remembered for each page of units."""


class ShrinkingComponent(PagedComponent):
    """See the module."""

    def __init__(self, cache: Any, params: Any) -> None:
        config = required_config()
        self.last_step = ShrinkStep.DEMOTE if config.demote else ShrinkStep.TRIM_BOUNDARIES
        super().__init__(cache, params)

    def forget(self) -> None:
        """Drop what is known of nodes; the tree was reset."""
        super().forget()
        self.shrinker = Shrinker(self, self.ledger, self.cut, self.near_pages)
        self.regret = Regret(self.ledger.units, MARKS_A_PAGE * self.ledger.units // self.page_size)

    def cut(self, pages: Pages, level: int) -> int:
        """Cut settled pages of one node to a level; returns the units gained."""
        return self.pool.cut(pages, level)

    # ---- what the shrinker asks of nodes ----

    def hits_end_at(self, node: Any) -> bool:
        """Whether a node is a leaf, a branch point, or followed by a node shorter than what a hit reads near."""
        children = list(node.children.values())
        return len(children) != 1 or len(self.pages(children[0])) < self.near_pages

    def is_locked(self, node: Any) -> bool:
        """Whether a running request holds a node."""
        return bool(node.component_data[FULL].lock_ref)

    def priority(self, node: Any) -> Any:
        """What SGLang's eviction policy makes of a node; the least goes first."""
        self._ensure_eviction_strategy()
        return self.session_ref_eviction_strategy(node)

    # ---- what comes and goes, for the regret ----

    def marks(self, node: Any) -> list[int]:
        """Of a node's pages."""
        data = node.component_data[FULL].metadata
        if "marks" not in data:
            above = node.parent
            key = node.key
            if above is self.tree_core.root_node:
                before = hash((key.extra_key, key.cache_salt))
            else:
                before = self.marks(above)[-1]
            tokens = key.raw_token_ids()
            data["marks"] = marks_after(before, tokens.tobytes(), tokens.itemsize * self.page_size)
        marks: list[int] = data["marks"]
        return marks

    def commit_insert_component_data(
        self, node: Any, is_new_leaf: bool, params: Any, result: Any, cache_actions: Any
    ) -> None:
        """Take charge of a new leaf's pages."""
        super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        if not is_new_leaf or not self.near_pages:
            return
        pages, price = self.pages(node), self.ledger.mean_price
        near_units = len(pages) * self.page_size * (price(LEVEL_NEAR) - price(LEVEL_FAR))
        units, parted = int(self.ledger.price[pages].sum()), self._parted(node) * self.page_size
        self.regret.inserted(units, near_units, parted, self.marks(node), self.page_size)

    def _parted(self, leaf: Any) -> int:
        """Pages before a new leaf whose near parts trimming would have taken, had it come before the leaf."""
        count, node = 0, leaf.parent
        new_branch = node.component_data[FULL].metadata.pop("new_branch", False)
        while node is not self.tree_core.root_node:
            others = len(node.children) - (node is leaf.parent)
            if others != 1 and not (node is leaf.parent and new_branch):
                break
            count += len(self.pages(node))
            node = node.parent
        return count

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Divide a node's pages."""
        marks = child.component_data[FULL].metadata.pop("marks", None)
        super().redistribute_on_node_split(new_parent, child)
        new_parent.component_data[FULL].metadata["new_branch"] = True
        if marks is not None:
            cut = len(self.pages(new_parent))
            new_parent.component_data[FULL].metadata["marks"] = marks[:cut]
            child.component_data[FULL].metadata["marks"] = marks[cut:]

    def evict_component(
        self,
        node: Any,
        device_frees: Any,
        host_frees: Any,
        cache_actions: Any,
        target: EvictLayer = EvictLayer.DEVICE,
    ) -> tuple[int, int]:
        """Give a node's pages up."""
        if self.near_pages and EvictLayer.DEVICE in target and self.value_len(node):
            self.regret.dropped(self.reclaimable_value_len(node), self.marks(node))
        return super().evict_component(node, device_frees, host_frees, cache_actions, target)

    # ---- memory back ----

    def relieve(self, units: int) -> None:
        """Trim what running requests hold until so many units are free or evictable, or nothing is left to trim.

        What nobody holds is evictable as it is.
        """
        self.shrinker.begin()
        while self.ledger.free_units + self.cache.evictable_size() < units:
            gained = self.shrinker.step(ShrinkStep.TRIM_BOUNDARIES, self.is_locked)
            if not gained:
                break
        self.shrinker.begin()

    def _evict_device_start(self, request_cnt: int) -> None:
        super()._evict_device_start(request_cnt)
        self.shrinker.begin()

    def _evict_device_next_node(
        self, tracker: dict[Any, int], device_frees: Any, host_frees: Any, cache_actions: Any
    ) -> int | None:
        rest = (tracker, device_frees, host_frees, cache_actions)
        if self.regret.prefers_dropping():
            victim: int | None = super()._evict_device_next_node(*rest)
            if victim is not None:
                return victim
        if tracker[FULL] < self._evict_device_request_cnt and (gained := self.shrinker.step(self.last_step)):
            tracker[FULL] += gained
            return None
        victim = super()._evict_device_next_node(*rest)
        return victim

    def _evict_device_end(self) -> None:
        super()._evict_device_end()
        self.shrinker.begin()
