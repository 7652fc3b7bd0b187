"""SGLang's paged allocator over logical pages, counting in units of the ledger."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from torch import Tensor

from leankv_sglang.kvcache.free_list import FreeList
from leankv_sglang.kvcache.hybrid import compressed_pool
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.pool import LeanKVPool
from leankv_sglang.kvcache.prefill_budget import LedgerBudget
from leankv_sglang.kvcache.transfer import put


class LeanKVAllocator(PagedTokenToKVPoolAllocator):
    """Hands out logical pages as long as there are units for their worst case, so that the blocks of what a forward
    commits are always there; what SGLang takes for free tokens are free units.

    The list of free pages is on the host, so nothing waits for the device to learn which pages a request got or gave.
    SGLang's own list on the device holds what is being handed out and is empty otherwise.
    """

    _kvcache: LeanKVPool
    taken: Pages
    """The pages handed out last."""
    promised = 0
    """Units that the prefill pass under way has promised to those it admitted."""
    _audited = -1
    _released: list[Pages]

    def __init__(
        self, size: int, page_size: int, dtype: torch.dtype, device: str, kvcache: Any, need_sort: bool
    ) -> None:
        # Of a model with recurrent layers, what SGLang calls its pool holds their states beside ours.
        self._given = kvcache
        super().__init__(size, page_size, dtype, device, compressed_pool(kvcache), need_sort)

    def get_kvcache(self) -> Any:
        """The pool as SGLang knows it."""
        return self._given

    @property
    def ledger(self) -> Any:
        """The pool's ledger."""
        return self._kvcache.ledger

    def available_size(self) -> int:
        """Free units: what new tokens reserve until their page is committed."""
        return int(self.ledger.free_units)

    def get_all_free_pages(self) -> Tensor:
        """Free pages, int64 ``[n]`` on the device; for SGLang's checks."""
        return put(self._free.ids(), self.device)

    def merge_and_sort_free(self) -> None:
        """Nothing to do: the host's list is kept in order."""

    # ---- taking ----

    def alloc(self, need_size: int) -> Tensor | None:
        """``need_size`` slots in whole pages, None where units do not suffice. No row is told of them."""
        return None if self._take(need_size // self.page_size) is None else super().alloc(need_size)

    def alloc_priced(self, prices: Pages) -> Tensor | None:
        """Slots in whole pages whose prices are known, None where units do not suffice; their ids are :attr:`taken`."""
        pages = self._take(len(prices), prices)
        return None if pages is None else super().alloc(len(prices) * self.page_size)

    def alloc_extend(
        self,
        prefix_lens: Tensor,
        prefix_lens_cpu: Tensor,
        seq_lens: Tensor,
        seq_lens_cpu: Tensor,
        last_loc: Tensor,
        extend_num_tokens: int,
        num_new_pages: int | None = None,
    ) -> Tensor | None:
        """Slots for prefill chunks, see the base class; None where units do not suffice."""
        pages = self._take_for(prefix_lens_cpu.numpy(), seq_lens_cpu.numpy())
        if pages is None:
            return None
        lens = (prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu)
        return super().alloc_extend(*lens, last_loc, extend_num_tokens, len(pages))

    def alloc_decode(self, seq_lens: Tensor, seq_lens_cpu: Tensor, last_loc: Tensor) -> Tensor | None:
        """A slot per request, see the base class; None where units do not suffice."""
        after = seq_lens_cpu.numpy()
        if self._take_for(after - 1, after) is None:
            return None
        return super().alloc_decode(seq_lens, seq_lens_cpu, last_loc)

    def _take_for(self, before: NDArray[np.integer], after: NDArray[np.integer]) -> Pages | None:
        """Take the pages with which requests of so many tokens get to have so many, and say which are whose."""
        first = -(-before.astype(np.int64) // self.page_size)
        counts = -(-after.astype(np.int64) // self.page_size) - first
        pages = self._take(int(counts.sum()))
        if pages is not None and self._kvcache.page_rows is not None:
            self._kvcache.page_rows.offer(first, counts, pages)
        return pages

    def _take(self, count: int, prices: Pages | None = None) -> Pages | None:
        self._kvcache.settle()
        if (count * self.page_size if prices is None else int(prices.sum())) > self.ledger.free_units:
            return None
        pages = self.taken = self._free.take(count)
        if count:
            self.ledger.open(pages, prices)
        # SGLang's code looks at an entry even where it needs none.
        self.free_pages = put(pages, self.device) if count else self._no_pages
        return pages

    # ---- giving back ----

    def release(self, pages: Pages) -> None:
        """Free pages whose ids the host knows, none of them twice; with the group, where SGLang has opened one."""
        if self.free_group is None:
            self._give(pages)
        else:
            self._released.append(pages)

    def _give(self, pages: Pages) -> None:
        if len(pages):
            self._kvcache.free(pages)
            self._free.give(pages)

    def _release_page_ids(self, *page_ids: Tensor) -> None:
        """What SGLang frees by slots alone; asks the device."""
        read = self._kvcache.slot_reader.ids
        self._give(np.concatenate([read(ids) for ids in page_ids]))

    def free_group_begin(self) -> None:
        """Hold back what is freed until the group ends."""
        super().free_group_begin()
        self._released.clear()

    def free_group_end(self) -> None:
        """Free what was held back."""
        super().free_group_end()
        released, self._released = self._released, []
        if released:
            self._give(np.concatenate(released))

    def clear(self) -> None:
        """Free every page."""
        self.num_pages = 0
        super().clear()
        self.num_pages = self.ledger.num_pages
        self._free = FreeList(sort=self.need_sort)
        self._free.clear(self.num_pages)
        self._released = []
        self._no_pages = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._kvcache.clear()

    # ---- what SGLang asks ----

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
        """SGLang's idle-time check: books, blocks, prices, pages against records, and the host's ids against slots.

        At idle the tree holds pages, all of them full, and so do streaming sessions, but for those that they go on
        with: each full page has a record in every layer, a free one has none. SGLang asks on every turn of its idle
        loop, so nothing is done where nothing changed.
        """
        pool = self._kvcache
        if pool.commits.waiting and pool.commits.group is not None:
            return []  # the ranks settle together, when they next allocate
        pool.drain()
        pool.commits.settle(all_of_them=True)
        if pool.version == self._audited:
            return []
        self._audited = pool.version
        problems = pool.audit()
        recorded = (pool.store.page_table != 0).sum(0).cpu().numpy()
        free = np.zeros(len(recorded), bool)
        free[self._free.ids()] = True
        free[0] = True
        if len(self._free) != free.sum() - 1:
            problems.append("a page is free twice")
        if kept := int((recorded[free] > 0).sum()):
            problems.append(f"{kept} free pages still hold records")
        full = ~free
        if pool.left_open is not None:
            full[pool.left_open()] = False
        if bare := int((recorded[full] != pool.layer_num).sum()):
            problems.append(f"{bare} held pages lack a record in some layer")
        if unsettled := int((full & (self.ledger.price > 0) & ~self.ledger.settled).sum()):
            problems.append(f"{unsettled} held pages were never trued up")
        if not np.array_equal(free, self.ledger.price == 0):
            problems.append("the free list and the ledger name different pages")
        return problems
