"""The tree with pages beyond the device: which pages leave with what, and what a request that loads some is given."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.components.base import (
    EvictLayer,
    ExternalLinkerLoadPhase,
    LinkerTransferPhase,
)

from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.tree.paged_component import FULL
from leankv_sglang.kvcache.tree.radix_cache import LeanKVRadixCache
from leankv_sglang.kvcache.tree.shrink import ShrinkStep
from leankv_sglang.kvcache.tree.shrinking_component import ShrinkingComponent
from leankv_sglang.kvcache.tree.trim import trim_steps
from leankv_sglang.offload.linker import LeanKVLinker
from leankv_sglang.offload.load_rule import LoadRule
from leankv_sglang.offload.page_transfer import PageTransfer

BOUNDARIES = 2
"""Of the boundaries inside nodes that trimming keeps longest, every so manieth goes beyond the device with its near
part, which is about as large as a page's far part."""
LONGEST_PREFILL = 10.0
"""Seconds between two prefills after which there was nothing to do meanwhile."""


class OffloadingComponent(ShrinkingComponent):
    """Pages go to the linker's places before they leave the tree, and come back from them."""

    linker: LeanKVLinker | None = None

    def cut(self, pages: Pages, level: int) -> int:
        """Cut pages of one node; near parts behind which hits end go to host memory before."""
        node = self._node_of[int(pages[0])]
        if self.linker is not None and self.linker.evicted_to_host and node.hash_value:
            chosen = np.isin(self.pages(node), pages) & self.worth_near(node)
            keys = [node.hash_value[i] for i in np.flatnonzero(chosen)]
            self.linker.leave(self.pages(node)[chosen], keys, np.ones(len(keys), bool), self.linker.stack.host)
        return super().cut(pages, level)

    def worth_near(self, node: Any) -> Any:
        """Of a node's pages, those behind which hits end: ends, branch points, and one in so many; bool ``[n]``."""
        place = self.start(node), len(self.pages(node))
        steps = trim_steps(*place, self.hits_end_at(node), self.near_pages, BOUNDARIES)
        return steps > ShrinkStep.TRIM_INSIDE

    def build_external_linker_transfer(self, phase: LinkerTransferPhase, node: Any, keys: Any) -> PoolTransfer | None:
        """See the base class; pages go by their ids on the host."""
        if phase == LinkerTransferPhase.OFFLOAD:
            if node is None or not node.hash_value or node.component_data[FULL].value is None:
                return None
            return PageTransfer(
                name=PoolName.KV, keys=list(node.hash_value), pages=self.pages(node), near=self.worth_near(node)
            )
        if phase != LinkerTransferPhase.LOAD or not keys:
            return super().build_external_linker_transfer(phase, node, keys)
        assert self.linker is not None
        found = self.linker.take(keys)
        if found is None:
            return None
        slots = self._room_for(found.prices)
        if slots is None:
            return None
        slots = slots.long()
        return PageTransfer(
            name=PoolName.KV, device_indices=slots, keys=list(keys), pages=self.allocator.taken, found=found
        )

    def _room_for(self, prices: Pages) -> torch.Tensor | None:
        """Slots for pages of these prices, None where there is no room beside what others were promised."""
        need = int(prices.sum())
        if self.allocator.available_size() + self.cache.evictable_size() - need < self.allocator.promised:
            return None
        if (short := need - self.allocator.available_size()) > 0:
            self.cache.evict(EvictParams(num_tokens=short))
        slots: torch.Tensor | None = self.allocator.alloc_priced(prices)
        return slots

    def update_external_linker_load(
        self, phase: Any, req: Any, full_transfer: Any, transfer: Any, prefix_len: int
    ) -> PoolTransfer | None:
        """See the base class."""
        if phase == ExternalLinkerLoadPhase.ABORT:
            self.allocator.release(transfer.pages)
            return None
        return super().update_external_linker_load(phase, req, full_transfer, transfer, prefix_len)

    def evict_component(
        self,
        node: Any,
        device_frees: Any,
        host_frees: Any,
        cache_actions: Any,
        target: EvictLayer = EvictLayer.DEVICE,
    ) -> tuple[int, int]:
        """Give a node's pages up; host memory takes them over."""
        if self.linker is not None and self.linker.evicted_to_host and node.hash_value and self.value_len(node):
            self.linker.leave(self.pages(node), node.hash_value, self.worth_near(node), self.linker.stack.host)
        return super().evict_component(node, device_frees, host_frees, cache_actions, target)

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Divide a node's pages; where it parts hits will end, so what they read near is kept there too."""
        super().redistribute_on_node_split(new_parent, child)
        store = self.linker.stack.store if self.linker is not None else None
        if self.linker is not None and store is not None and new_parent.hash_value:
            last = slice(-self.near_pages, None) if self.near_pages else slice(0, 0)
            pages = self.pages(new_parent)[last]
            self.linker.leave(pages, new_parent.hash_value[last], np.ones(len(pages), bool), store)


class OffloadingRadixCache(LeanKVRadixCache):
    """The tree of a server that keeps pages beyond the device."""

    component: ClassVar[type[ShrinkingComponent]] = OffloadingComponent

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.device_is_ahead = self.paged.pool.store.blocks.is_cuda
        self._prefill = 0.0, 0
        """When the last prefill began, and its tokens once they are known."""

    def init_cache_linker(self, cache_linker: Any) -> None:
        """Attach the linker."""
        super().init_cache_linker(cache_linker)
        assert isinstance(self.paged, OffloadingComponent)
        self.paged.linker = cache_linker

    def _match_tree(self, params: Any) -> Any:
        self._asked = params.key
        return super()._match_tree(params)

    def _finalize_match_result(self, params: Any, result: Any) -> Any:
        # What of the key the tree cannot serve, other places may.
        return super()._finalize_match_result(replace(params, key=self._asked), result)

    def init_load_back(self, params: Any) -> Any:
        """Have a request's hit beyond the device loaded; SGLang is told what of it came from a store."""
        loaded = super().init_load_back(params)
        req = params.req
        if self.linker is not None and loaded is not None and loaded[0]:
            req.storage_hit_length = self.linker.cache_linker.from_store.get(req.rid, 0) * self.page_size
        return loaded

    def ready_to_load_host_cache(self) -> int:
        """A prefill begins; on a GPU the one before it has taken until now, more or less, unless nothing was asked."""
        now = time.monotonic()
        began, tokens = self._prefill
        if self.device_is_ahead and tokens and now - began < LONGEST_PREFILL:
            self._rule().computed(tokens, now - began)
        self._prefill = now, 0
        index: int = super().ready_to_load_host_cache()
        return index

    def finish_external_linker_loads(self, reqs: Any) -> Any:
        """A forward was launched, and on a CPU it is over."""
        began, tokens = self._prefill
        if began and not tokens:
            tokens = sum(max(req.extend_len, 0) for req in reqs if req.extend_end is not None)
            if not self.device_is_ahead:
                self._rule().computed(tokens, time.monotonic() - began)
            self._prefill = began, tokens
        return super().finish_external_linker_loads(reqs)

    def _rule(self) -> LoadRule:
        assert self.linker is not None
        rule: LoadRule = self.linker.cache_linker.rule
        return rule

    def _prefix_pages(self, req: Any) -> Pages:
        loaded = self.linker.cache_linker.loading.get(req.rid) if self.linker is not None else None
        path = self._path(req.last_node)
        path = path if loaded is None else np.concatenate([path, loaded])
        return path[: req.prefix_len // self.page_size]
