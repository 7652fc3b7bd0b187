"""SGLang's paged allocator over logical page ids, telling the pool which pages were freed."""

from __future__ import annotations

from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from torch import Tensor

from leankv_sglang.pool import LeanKVPool


class LeanKVAllocator(PagedTokenToKVPoolAllocator):
    """Pages are priced at their worst case: a free logical page always finds its blocks."""

    _kvcache: LeanKVPool

    def _release_page_ids(self, *page_ids: Tensor) -> None:
        for ids in page_ids:
            self._kvcache.retire(ids)
        super()._release_page_ids(*page_ids)

    def clear(self) -> None:
        """Free every page."""
        super().clear()
        self._kvcache.clear()

    def verify_byte_accounting(self) -> list[str]:
        """SGLang's idle-time check: the pool's audit."""
        return self._kvcache.audit()
