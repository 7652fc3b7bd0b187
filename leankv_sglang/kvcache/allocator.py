"""SGLang's paged allocator over logical pages, counting in units of the ledger."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.utils.common import get_num_new_pages
from torch import Tensor

from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.pool import LeanKVPool
from leankv_sglang.kvcache.prefill_budget import LedgerBudget


class LeanKVAllocator(PagedTokenToKVPoolAllocator):
    """Hands out logical pages as long as there are units for their worst case, so that the blocks of what a forward
    commits are always there; what SGLang takes for free tokens are free units."""

    _kvcache: LeanKVPool
    _audited = -1

    @property
    def ledger(self) -> Any:
        """The pool's ledger."""
        return self._kvcache.ledger

    def available_size(self) -> int:
        """Free units: what new tokens reserve until their page is committed."""
        return int(self.ledger.free_units)

    def alloc(self, need_size: int) -> Tensor | None:
        """``need_size`` slots in whole pages, None where units do not suffice."""
        return self._take(need_size // self.page_size, lambda: super(LeanKVAllocator, self).alloc(need_size))

    def alloc_extend(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Slots for prefill chunks, see the base class; None where units do not suffice."""
        prefix, seq = args[1], args[3]
        pages = kwargs.get("num_new_pages")
        if pages is None:
            pages = get_num_new_pages(seq_lens=seq, page_size=self.page_size, prefix_lens=prefix)
        return self._take(pages, lambda: super(LeanKVAllocator, self).alloc_extend(*args, **kwargs))

    def alloc_decode(self, seq_lens: Tensor, seq_lens_cpu: Tensor, last_loc: Tensor) -> Tensor | None:
        """A slot per request, see the base class; None where units do not suffice."""
        pages = get_num_new_pages(seq_lens=seq_lens_cpu, page_size=self.page_size, decode=True)
        return self._take(pages, lambda: super(LeanKVAllocator, self).alloc_decode(seq_lens, seq_lens_cpu, last_loc))

    def _take(self, pages: int, take: Any) -> Tensor | None:
        self._kvcache.settle()
        if pages * self.page_size > self.ledger.free_units:
            return None
        self.merge_and_sort_free()
        taken = self.free_pages[:pages]
        slots = take()
        if slots is not None and pages:
            self.ledger.open(_on_host(taken))
        return slots

    def _release_page_ids(self, *page_ids: Tensor) -> None:
        for ids in page_ids:
            self._kvcache.free(_on_host(ids))
        super()._release_page_ids(*page_ids)

    def clear(self) -> None:
        """Free every page."""
        self.num_pages = self.ledger.num_pages
        super().clear()
        self._kvcache.clear()

    def create_prefill_budget(self, tree_cache: Any, *, num_mixed_decode_tokens: int = 0) -> LedgerBudget:
        """What a prefill pass may admit, at true prices."""
        self._kvcache.settle()
        tree_cache.relieve()
        return LedgerBudget(self, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens)

    def evict_to_free_tokens(self, tree_cache: Any, num_tokens: int) -> bool | None:
        """Trim and evict until ``num_tokens`` units are free or nothing more can go."""
        self._kvcache.settle()
        return super().evict_to_free_tokens(tree_cache, num_tokens)

    def verify_byte_accounting(self) -> list[str]:
        """SGLang's idle-time check: books, blocks, prices, and pages against records.

        At idle only the tree holds pages, all of them full: each held page has a record in every layer, a free one
        has none. SGLang asks on every turn of its idle loop, so nothing is done where nothing changed.
        """
        pool = self._kvcache
        if pool.commits.waiting and pool.commits.group is not None:
            return []  # the ranks settle together, when they next allocate
        pool.commits.settle(all_of_them=True)
        pool.drain()
        if pool.version == self._audited:
            return []
        self._audited = pool.version
        problems = pool.audit()
        recorded = (pool.store.page_table != 0).sum(0)
        free = torch.zeros_like(recorded, dtype=torch.bool)
        free[self.get_all_free_pages()] = True
        free[0] = True
        if kept := int((recorded[free] > 0).sum()):
            problems.append(f"{kept} free pages still hold records")
        if bare := int((recorded[~free] != pool.layer_num).sum()):
            problems.append(f"{bare} held pages lack a record in some layer")
        if not np.array_equal(free.cpu().numpy(), self.ledger.price == 0):
            problems.append("the free list and the ledger name different pages")
        return problems


def _on_host(ids: Tensor) -> Pages:
    return ids.detach().cpu().numpy().astype(np.int64)
