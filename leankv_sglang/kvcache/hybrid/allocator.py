"""SGLang's allocator of full layers and windows, with pages of ours on the one side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from torch import Tensor

from leankv_sglang.kvcache.allocator import LeanKVAllocator
from leankv_sglang.kvcache.hybrid.budget import HybridBudget
from leankv_sglang.kvcache.hybrid.pools import WindowPools
from leankv_sglang.kvcache.ledger import Ledger


class HybridAllocator(SWATokenToKVPoolAllocator):
    """Logical pages for full layers, and with each a page of the window pool until the window has slid past it.

    Differs from its base in what it is made of, and in that logical ids outnumber units: the table that leads to
    window slots has room for all of them.
    """

    full_attn_allocator: LeanKVAllocator

    def __init__(
        self,
        size: int,
        size_swa: int,
        page_size: int,
        dtype: torch.dtype,
        device: str,
        kvcache: WindowPools,
        need_sort: bool,
        req_to_token_pool: Any = None,
    ) -> None:
        full = kvcache.full_kv_pool
        # Not the base's own: it would have both sides of one class.
        self._size_full, self._size_swa = full.ledger.units, size_swa
        self.dtype, self.device, self.page_size, self.need_sort = dtype, device, page_size, need_sort
        self.full_attn_allocator = LeanKVAllocator(size, page_size, dtype, device, full, need_sort)
        self.swa_attn_allocator = PagedTokenToKVPoolAllocator(
            size_swa, page_size, dtype, device, kvcache.swa_kv_pool, need_sort
        )
        slots = (full.ledger.num_pages + 1) * page_size
        self.full_to_swa_index_mapping = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        # A request without a prefix has its last slot at -1, and finds -1 there.
        self.full_to_swa_index_mapping[-1] = -1
        self.free_pages = self.release_pages = self.free_group = None
        self.swa_free_group: list[Tensor] = []
        self.swa_page_ids_group: list[Tensor] = []
        self._kvcache, self._req_to_token_pool, self._swa_ring_cost = kvcache, req_to_token_pool, 0
        self.clear()
        kvcache.register_mapping(self.full_to_swa_index_mapping)

    @property
    def ledger(self) -> Ledger:
        """What full layers cost; windows are counted apart."""
        ledger: Ledger = self.full_attn_allocator.ledger
        return ledger

    def alloc_decode(self, seq_lens: Tensor, seq_lens_cpu: Tensor, last_loc: Tensor) -> Tensor | None:
        """A slot per request on both sides, see the base class; None, and nothing taken, where either is short."""
        new = int(((seq_lens_cpu - 1) % self.page_size == 0).sum())
        if not self.new_pages_available(new, new):
            return None
        slots: Tensor | None = super().alloc_decode(seq_lens, seq_lens_cpu, last_loc)
        return slots

    def new_pages_available(self, num_full_pages: int, num_swa_pages: int) -> bool:
        """Whether so many pages can be had on each side."""
        self.full_attn_allocator.get_kvcache().settle()
        return bool(super().new_pages_available(num_full_pages, num_swa_pages))

    def evict_to_free_tokens(self, tree_cache: Any, num_tokens: int) -> None:
        """Trim and evict until ``num_tokens`` are free on both sides or nothing more can go."""
        self.full_attn_allocator.get_kvcache().settle()
        super().evict_to_free_tokens(tree_cache, num_tokens)

    def create_prefill_budget(self, tree_cache: Any, *, num_mixed_decode_tokens: int = 0) -> HybridBudget:
        """What a prefill pass may admit, on both sides."""
        self.full_attn_allocator.get_kvcache().settle()
        tree_cache.relieve()
        return HybridBudget(self, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens)

    def verify_byte_accounting(self) -> list[str]:
        """SGLang's idle-time check: our pages', and that every window page is named by one
        logical page that is held."""
        return self.full_attn_allocator.verify_byte_accounting() + self.audit_windows()

    def audit_windows(self) -> list[str]:
        """One sentence for each way in which the table to window slots contradicts the pages that are held."""
        slots = self.full_to_swa_index_mapping[:-1].view(-1, self.page_size).cpu().numpy()
        named = np.flatnonzero(slots[:, 0])
        problems = []
        if bad := int((self.ledger.price[named] == 0).sum()):
            problems.append(f"{bad} window pages are named by logical pages that are free")
        pages = slots[named] // self.page_size
        # Of a page still being written the slots behind the last token name nothing.
        if (pages[slots[named] > 0] != np.repeat(pages[:, 0], (slots[named] > 0).sum(1))).any() or len(
            np.unique(pages[:, 0])
        ) != len(named):
            problems.append("two logical pages name one window page, or one names several")
        free, all_of_them = (n // self.page_size for n in (self.swa_attn_allocator.available_size(), self._size_swa))
        if len(named) + free != all_of_them:
            problems.append(f"{len(named)} window pages named and {free} free are not {all_of_them}")
        return problems
