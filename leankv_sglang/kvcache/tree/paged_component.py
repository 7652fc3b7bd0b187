"""The FULL component of SGLang's unified radix tree, with pages at the prices of the ledger.

A node costs what its pages cost. Under pressure near parts are cut first, then, where that is allowed, refinements,
and only then are leaves dropped. Prices change in place (a commit is trued up, a page is cut), so pages know their
node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.unified_cache.cache_action import FreeComponentDeviceSlot
from sglang.srt.mem_cache.unified_cache.components import ComponentType, FullComponent
from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer

from leankv_kernels.layout import LEVEL_BASE, LEVEL_NEAR
from leankv_sglang.config import required_config
from leankv_sglang.kvcache.hybrid import compressed_pool
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.tree.lookup import Lookup, Step, pages_of, path_of, valid_end
from leankv_sglang.kvcache.tree.shrink import Shrinker
from leankv_sglang.kvcache.tree.trim import legal_end

FULL = ComponentType.FULL


class PagedComponent(FullComponent):
    """Nodes of compressed pages; see the module. What gives memory back is in ``shrinking_component.py``."""

    shrinker: Shrinker

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        config = required_config()
        allocator = params.token_to_kv_pool_allocator
        # Of a model with sliding windows, the half that holds pages.
        self.allocator = getattr(allocator, "full_attn_allocator", allocator)
        self.pool = compressed_pool(self.allocator.get_kvcache())
        self.ledger = self.pool.ledger
        self.page_size: int = self.pool.page_size
        self.near_pages = config.near_pages
        self.strict = config.match == "strict"
        self.ledger.on_reprice = self._on_reprice
        group = params.attn_tp_cache_group
        if group is not None and torch.distributed.get_world_size(group=group) > 1:
            self.pool.commits.group = group
        self.pool.audits.append(self.audit)
        self.forget()

    def forget(self) -> None:
        """Drop what is known of nodes; the tree was reset."""
        self._node_of: dict[int, Any] = {}
        self._inserted: Pages | None = None

    # ---- what a node holds ----

    @contextmanager
    def inserting(self, pages: Pages) -> Iterator[None]:
        """While SGLang inserts the slots of a request's row: the pages they lie in, from its first token on."""
        self._inserted = pages
        try:
            yield
        finally:
            self._inserted = None

    def pages(self, node: Any) -> Pages:
        """Logical pages of a node, int64 ``[n]``."""
        data = node.component_data[FULL]
        pages: Pages | None = data.metadata.get("pages")
        if pages is None:
            slots = data.value if data.value is not None else torch.empty(0)
            start = 0 if self._inserted is None or node.parent is None else self.start(node)
            pages = data.metadata["pages"] = self._pages_of(slots, start)
        return pages

    def _pages_of(self, slots: torch.Tensor, start: int) -> Pages:
        """Pages of whole pages of slots, from page ``start`` of the path inserted on; asks the device where SGLang
        inserts slots that come from no row."""
        if self._inserted is not None:
            return self._inserted[start : start + -(-len(slots) // self.page_size)]
        return self.pool.slot_reader.pages(slots[:: self.page_size]) if len(slots) else np.empty(0, np.int64)

    def path(self, node: Any) -> Pages:
        """Pages from the root to the end of a node, int64 ``[n]``."""
        parts = [self.pages(n) for n in self._upwards(node)]
        return np.concatenate([np.empty(0, np.int64), *reversed(parts)])

    def audit(self) -> list[str]:
        """A sentence if nodes hold other pages than their slots say; asks the device, so for idle times."""
        nodes = {id(node): node for node in self._node_of.values()}.values()
        slots = [node.component_data[FULL].value[:: self.page_size] for node in nodes]
        if not slots:
            return []
        held = torch.cat(slots).cpu().numpy() // self.page_size
        bad = int((held != np.concatenate([self.pages(node) for node in nodes])).sum())
        return [f"the host names other pages than the device in {bad} places of the tree"] if bad else []

    def start(self, node: Any) -> int:
        """Pages of the path before a node."""
        return sum(len(self.pages(n)) for n in self._upwards(node.parent))

    def _upwards(self, node: Any) -> Iterator[Any]:
        """A node and those above it, without the root."""
        while node is not None and node is not self.tree_core.root_node:
            yield node
            node = node.parent

    def reclaimable_value_len(self, node: Any) -> int:
        """Units that evicting the node gives back."""
        return int(self.ledger.price[self.pages(node)].sum()) if self.value_len(node) else 0

    def _own(self, node: Any) -> None:
        for page in self.pages(node).tolist():
            self._node_of[page] = node
        self._reconsider(node)

    def _reconsider(self, node: Any) -> None:
        if node is not self.tree_core.root_node:
            self.shrinker.reconsider(node)

    def _on_reprice(self, pages: Pages, delta: NDArray[np.int64]) -> None:
        changes: Counter[Any] = Counter()
        for page, change in zip(pages.tolist(), delta.tolist(), strict=True):
            if (node := self._node_of.get(page)) is not None:
                changes[node] += change
        for node, change in changes.items():
            self.tree_core.adjust_component_size(node.id, FULL, change)

    # ---- the tree's hooks ----

    def commit_insert_component_data(
        self, node: Any, is_new_leaf: bool, params: Any, result: Any, cache_actions: Any
    ) -> None:
        """Take charge of a new leaf's pages."""
        super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        if is_new_leaf:
            self._own(node)
            # The end of what is now inside a path is no longer where hits end.
            self._reconsider(node.parent)

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Divide a node's pages; near locks lie on pages and stay."""
        pages, cut = self.pages(child), len(new_parent.key) // self.page_size
        super().redistribute_on_node_split(new_parent, child)
        for node, part in ((new_parent, pages[:cut]), (child, pages[cut:])):
            node.component_data[FULL].metadata["pages"] = part
            self._own(node)

    def evict_component(
        self,
        node: Any,
        device_frees: Any,
        host_frees: Any,
        cache_actions: Any,
        target: EvictLayer = EvictLayer.DEVICE,
    ) -> tuple[int, int]:
        """Give a node's pages up."""
        slots: dict[Any, list[torch.Tensor]] = {FULL: []}
        freed = super().evict_component(node, slots, host_frees, cache_actions, target)
        if slots[FULL]:
            device_frees[FULL].append(self.pages(node))
            self.pool.counts.evicted += len(self.pages(node))
        if EvictLayer.DEVICE in target:
            for page in self.pages(node).tolist():
                self._node_of.pop(page, None)
            self.shrinker.forget(node)
            if node.parent is not None:
                self._reconsider(node.parent)
        return freed

    def update_component_on_insert_overlap(
        self,
        node: Any,
        prefix_len: int,
        total_prefix_len: int,
        value_slice: torch.Tensor,
        params: Any,
        result: Any,
        cache_actions: Any,
    ) -> int:
        """Where a request brings pages that the tree holds cut, the tree takes over the request's records.

        Both were computed from the same tokens, so what they still hold is the same, and rows that name the tree's
        page may go on doing so. The request's page, with the shorter record, is then freed as a duplicate.
        """
        ours = super().update_component_on_insert_overlap(
            node, prefix_len, total_prefix_len, value_slice, params, result, cache_actions
        )
        dup = max(0, params.prev_prefix_len - total_prefix_len)
        if dup >= prefix_len:
            return ours
        held = self.pages(node)[dup // self.page_size : prefix_len // self.page_size]
        fresh = self._pages_of(value_slice[dup:], (total_prefix_len + dup) // self.page_size)
        better = self.ledger.level[fresh] > self.ledger.level[held]
        if better.any():
            self.pool.swap(held[better], fresh[better])
            self._reconsider(node)
        # Freed here, by ids, so that nothing is left for SGLang to free by slots.
        cache_actions.append(FreeComponentDeviceSlot([fresh], component_type=FULL))
        return dup

    def apply_component_action(self, action: Any) -> None:
        """Free what eviction and insertion have given up: lists of pages, where SGLang's own hold slots."""
        if not isinstance(action, FreeComponentDeviceSlot):
            super().apply_component_action(action)
            return
        for pages in action.indices:
            self.allocator.release(pages)

    # ---- locks: what a running request reads near ----

    def _near_pages_before(self, node: Any) -> Pages:
        found, need = [np.empty(0, np.int64)], self.near_pages
        for above in self._upwards(node):
            if need <= 0:
                break
            found.append(self.pages(above)[-need:])
            need -= len(found[-1])
        return np.concatenate(found)

    def acquire_component_lock(self, node: Any, result: Any, lock_host: bool = False) -> Any:
        """Lock the path to a node, and the near parts of its last pages."""
        if not lock_host:
            self.ledger.lock_near(self._near_pages_before(node))
        return super().acquire_component_lock(node, result, lock_host)

    def release_component_lock(self, node: Any, params: Any, lock_host: bool = False) -> None:
        """Undo :meth:`acquire_component_lock`."""
        if not lock_host:
            self.ledger.unlock_near(self._near_pages_before(node))
            self._reconsider(node)
        super().release_component_lock(node, params, lock_host)

    # ---- matching ----

    def legal_length(self, key: Any) -> int:
        """Tokens of ``key`` at whose end a hit may stop: the pages that its next token reads near are held in full,
        and, in strict mode, none before it was demoted."""
        return self.legal_end_of(self._steps(key))

    def _steps(self, key: Any) -> list[Step]:
        return path_of(self.tree_core, key.page_aligned(self.page_size), self.page_size)

    def legal_end_of(self, steps: list[Step], limit: int | None = None) -> int:
        """The same of a path, of its first ``limit`` tokens."""
        pages = pages_of(steps, self.pages, self.page_size)
        level = self.ledger.level[pages if limit is None else pages[: limit // self.page_size]]
        if self.strict and (demoted := np.flatnonzero(level == LEVEL_BASE)).size:
            level = level[: demoted[0]]
        return legal_end(level == LEVEL_NEAR, self.near_pages) * self.page_size

    def look_up(self, key: Any) -> Lookup:
        """What a request with this key would be given, without touching anything; see :mod:`lookup`."""
        steps = self._steps(key)
        legal = length = self.legal_end_of(steps)
        components = self.cache._components_tuple
        # As radix_cache.LeanKVRadixCache._match_tree does.
        while (hit := valid_end(components, steps, length)) < length:
            if (length := self.legal_end_of(steps, hit)) == hit:
                break
        at, last = 0, None
        for node, tokens in steps:
            if at >= hit:
                break
            at, last = at + tokens, node
        return Lookup(hit, legal, pages_of(steps, self.pages, self.page_size), last)
