"""SGLang's paged allocator over logical page ids, telling the pool which pages were freed."""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from torch import Tensor

from leankv_sglang.pool import LeanKVPool


class LeanKVAllocator(PagedTokenToKVPoolAllocator):
    """Pages are priced at their worst case: a free logical page always finds its blocks."""

    _kvcache: LeanKVPool
    _audited = -1

    def _release_page_ids(self, *page_ids: Tensor) -> None:
        for ids in page_ids:
            self._kvcache.retire(ids)
        super()._release_page_ids(*page_ids)

    def clear(self) -> None:
        """Free every page."""
        super().clear()
        self._kvcache.clear()

    def verify_byte_accounting(self) -> list[str]:
        """SGLang's idle-time check: the pool's audit, and pages against records.

        At idle only the tree holds pages, all of them full: each held page has a record in every layer, a free one
        has none. SGLang asks on every turn of its idle loop, so nothing is done where nothing changed.
        """
        self._kvcache.drain()
        if self._kvcache.version == self._audited:
            return []
        self._audited = self._kvcache.version
        problems = self._kvcache.audit()
        recorded = (self._kvcache.store.page_table != 0).sum(0)
        free = torch.zeros_like(recorded, dtype=torch.bool)
        free[self.get_all_free_pages()] = True
        free[0] = True
        layers = self._kvcache.layer_num
        if kept := int((recorded[free] > 0).sum()):
            problems.append(f"{kept} free pages still hold records")
        if bare := int((recorded[~free] != layers).sum()):
            problems.append(f"{bare} held pages lack a record in some layer")
        return problems
