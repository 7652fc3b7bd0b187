"""SGLang's linker over our pages: what the tree finds outside the device, what comes back, and what leaves.

Work on records waits for the next forward, in order with all else that is done to them (``kvcache/deferred.py``), so a
page that is to be freed has left before, and one that comes back is there before it is read. A load is refused before
it begins where its objects are not there or not good: the request computes these tokens then, and nothing fails.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import LayerWiseLoadCounter, UnifiedCacheLinker

from leankv_kernels.layout import LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR
from leankv_kernels.packed import PackedPages
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.transfer import copy_out, put
from leankv_sglang.offload.host import HostStore
from leankv_sglang.offload.load_rule import LoadRule
from leankv_sglang.offload.page_object import COUNTS, PageName, Part, to_objects, to_packed
from leankv_sglang.offload.page_store import PageStore
from leankv_sglang.offload.page_transfer import FoundPages, PageTransfer
from leankv_sglang.offload.store_stack import StoreStack

MOST_NOTED = 4096
"""Requests of which is noted where their pages are."""


@dataclass
class OffloadCounts:
    """What has left the device and come back since the start, in pages and bytes."""

    pages_out: int = 0
    bytes_out: int = 0
    pages_in: int = 0
    bytes_in: int = 0
    pages_from_store: int = 0
    """Of those that came back, pages that were not in host memory when they were first looked for."""
    refused: int = 0
    """Loads whose pages were gone, damaged or late."""


class LeanKVLinker(UnifiedCacheLinker):
    """See the module.

    Args:
        pool: our pool.
        stack: where pages are kept.
        identity: of the pages.
        evicted_to_host: whether pages that leave the device are kept in host memory.
        group: process group (host side) of the ranks that load together, or None.
        rule: whether a prefix is brought from the store.
    """

    def __init__(
        self,
        pool: Any,
        stack: StoreStack,
        identity: bytes,
        evicted_to_host: bool,
        group: Any = None,
        rule: LoadRule | None = None,
    ) -> None:
        self.pool, self.stack, self.identity, self.group = pool, stack, identity, group
        self.rule = rule or LoadRule("always")
        self.evicted_to_host = evicted_to_host
        self.pools = {PoolName.KV: pool}
        self.layer_done_counter = LayerWiseLoadCounter(1)
        self.counts = OffloadCounts()
        self.near_pages: int = pool.config.near_pages if pool.layout.near else 0
        self._completed = 0
        self.loading: dict[str, Pages] = {}
        """Pages that requests have loaded which are not in the tree yet."""
        self.from_store: dict[str, int] = {}
        """How many pages of each request's load came from the store."""
        self._missed: OrderedDict[str, set[str]] = OrderedDict()

    # ---- what is there ----

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        """See the base class; has the longest prefix fetched."""
        keys = transfers[0].keys or []
        ends = self._ends(keys, self.stack)
        if not ends:
            return ends
        wanted = [name for one in self._wanted(keys[: ends[-1]]) for name in one]
        there = self.stack.host.has(wanted)
        missing = {name.key for name, is_there in zip(wanted, there, strict=True) if not is_there}
        if missing and not self._is_worth_fetching(len(missing)):
            return self._ends(keys, self.stack.host)
        # Before it is fetched, so that a hit can be told where it came from.
        if rid not in self._missed:
            self._missed[rid] = missing
            if len(self._missed) > MOST_NOTED:
                self._missed.popitem(last=False)
        self.stack.fetch(wanted)
        return ends

    def would_load(self, keys: Sequence[str]) -> tuple[int, int]:
        """How many of a prefix's pages :meth:`lookup` would have loaded from host memory, and from the store; by this
        rank alone, and nothing is fetched."""
        ends = self._ends(keys, self.stack)
        if not ends:
            return 0, 0
        in_host = self.has_in_host(keys[: ends[-1]])
        if missing := in_host.count(False):
            if self._is_worth_fetching(missing):
                return ends[-1] - missing, missing
            ends = self._ends(keys, self.stack.host)
        return (ends[-1] if ends else 0), 0

    def has_in_host(self, keys: Sequence[str]) -> list[bool]:
        """Of which pages host memory has all but the near parts, where none ends a hit."""
        return self.stack.host.has(_names(keys, Part.FAR))

    def _ends(self, keys: Sequence[str], place: StoreStack | HostStore) -> list[int]:
        """Pages after which a hit may end by what a place has."""
        far = place.has(_names(keys, Part.FAR))
        count = far.index(False) if False in far else len(far)
        near = place.has(_names(keys[:count], Part.NEAR)) if self.near_pages else [True] * count
        return [end for end in range(1, count + 1) if all(near[max(0, end - self.near_pages) : end])]

    def _is_worth_fetching(self, pages: int) -> bool:
        """By what pages of this server take on average."""
        moved, nbytes = self.counts.pages_in + self.counts.pages_out, self.counts.bytes_in + self.counts.bytes_out
        return self.rule.is_worth(pages * self.pool.page_size, pages * nbytes / moved if moved else 0.0)

    def _wanted(self, keys: Sequence[str]) -> tuple[list[PageName], list[PageName]]:
        """Far and near objects of a prefix at whose end a hit stops."""
        last = keys[max(0, len(keys) - self.near_pages) :] if self.near_pages else []
        return _names(keys, Part.FAR), _names(last, Part.NEAR)

    # ---- coming back ----

    def take(self, keys: Sequence[str]) -> FoundPages | None:
        """A prefix's pages in hand, checked, with what they cost; None, on every rank, where any rank has not all."""
        names = self._wanted(keys)
        far, near = (self.stack.get(of) for of in names)
        if not self._all_agree(None not in far and None not in near):
            self.counts.refused += 1
            return None
        whole = [one for one in far if one is not None]
        parts = [None] * (len(keys) - len(near)) + near
        packed = to_packed(whole, parts)
        # A far object may be of a page that was trimmed by then, and know of no near part.
        counts = np.stack([(of_near or of_far).counts for of_far, of_near in zip(whole, parts, strict=True)])
        blocks = torch.from_numpy(counts[:, :3].copy())
        if self.group is not None:
            torch.distributed.all_reduce(blocks, torch.distributed.ReduceOp.MAX, group=self.group)
        # Without a near part records are whole at the far level.
        held = packed.level.numpy() if self.near_pages else np.full(len(keys), LEVEL_NEAR)
        prices = self.pool.ledger.units_of(blocks.numpy()[np.arange(len(keys)), held - LEVEL_BASE])
        return FoundPages(packed, counts, blocks.numpy(), held, prices)

    def _all_agree(self, good: bool) -> bool:
        if self.group is None:
            return good
        word = torch.tensor([int(good)], dtype=torch.int32)
        torch.distributed.all_reduce(word, torch.distributed.ReduceOp.MIN, group=self.group)
        return bool(word.item())

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        """Have pages in hand written to pages that are the request's."""
        transfer = transfers[0]
        assert isinstance(transfer, PageTransfer)
        assert transfer.pages is not None
        assert transfer.found is not None
        keys, pages, found = transfer.keys or [], transfer.pages, transfer.found
        ledger, epochs = self.pool.ledger, self.pool.ledger.epoch[pages]
        ledger.note_counts(pages, epochs, found.counts)
        ledger.level[pages] = found.level
        ledger.settle(pages, epochs, found.blocks)
        self.pool.deferred.then(partial(self._unpack, pages, found.packed))
        missed = self._missed.pop(rid, set())
        self.from_store[rid] = sum(key in missed for key in keys)
        self.counts.pages_in += len(pages)
        self.counts.pages_from_store += self.from_store[rid]
        self.counts.bytes_in += found.packed.far.numel() + found.packed.near.numel()
        self.loading[rid] = pages
        return True

    def _unpack(self, pages: Pages, packed: PackedPages) -> None:
        device = self.pool.store.blocks.device
        if device.type != "cpu":
            packed = PackedPages(*(put(part.numpy(), device) for part in packed))
        self.pool.ops.unpack_pages(self.pool.store, put(pages, device), packed)

    def start_layer_wise_loading(self) -> int:
        """Nothing to start: the next forward begins with what is queued."""
        return -1

    def finish_layer_wise_loading(self, counter_index: int) -> bool:
        """Whatever was queued has landed: it was in hand before."""
        self.loading.clear()
        self.from_store.clear()
        return True

    def cancel_queued_load(self, rid: str) -> bool:
        """Queued writes come before the frees of the same pages, so there is nothing to take back."""
        return self.loading.pop(rid, None) is not None

    # ---- leaving ----

    def offload(self, transfers: list[PoolTransfer], session_id: str | None = None) -> bool:
        """Have pages written to the store, if there is one."""
        transfer = transfers[0]
        assert isinstance(transfer, PageTransfer)
        assert transfer.pages is not None
        assert transfer.near is not None
        if self.stack.store is not None:
            self.leave(transfer.pages, transfer.keys or [], transfer.near, self.stack.store)
        self._completed += 1
        return True

    def leave(self, pages: Pages, keys: Sequence[str], near: Any, place: PageStore) -> None:
        """Have pages copied out as they are now, those that are not demoted and not kept there already.

        Args:
            pages: int64 ``[n]``.
            keys: their keys.
            near: bool ``[n]``, whose near part is worth keeping.
            place: of the stack's, where they are kept.
        """
        held = self.pool.ledger.level[pages]
        wants_near = near & (held == LEVEL_NEAR) & bool(self.near_pages)
        has_far, has_near = (np.array(self.stack.has_in(place, _names(keys, part)), bool) for part in Part)
        chosen = (held > LEVEL_BASE) & (~has_far | wants_near & ~has_near)
        if not chosen.any():
            return
        some = [key for key, is_chosen in zip(keys, chosen.tolist(), strict=True) if is_chosen]
        level = np.where(wants_near[chosen], LEVEL_NEAR, LEVEL_FAR)
        self.pool.deferred.then(
            partial(self._pack, pages[chosen], level, self._room(pages[chosen], level), some, place)
        )

    def _room(self, pages: Pages, level: Pages) -> tuple[int, int]:
        """Bytes that the far parts of pages take at most, and the near parts of those that are wanted near."""
        far, near = (self.pool.ledger.blocks_held(pages, at) for at in (LEVEL_FAR, LEVEL_NEAR))
        near = np.where(level == LEVEL_NEAR, near - far + self.pool.layer_num, 0)
        block_bytes = self.pool.store.layout.block_bytes
        return int(far.sum()) * block_bytes, int(near.sum()) * block_bytes

    def _pack(self, pages: Pages, level: Pages, room: tuple[int, int], keys: list[str], place: PageStore) -> None:
        store, ops = self.pool.store, self.pool.ops
        ids = put(pages, store.blocks.device)
        packed = ops.pack_pages(store, ids, put(level, store.blocks.device), room)
        # Behind the bytes on their stream, so these are here last.
        arrivals = [copy_out(part) for part in (*packed, ops.count_pages(store, ids))]
        identity = self.identity

        def make() -> dict[PageName, bytes]:
            for arrival in arrivals:
                arrival.wait()
            *parts, counts = (arrival.values for arrival in arrivals)
            made = to_objects(keys, identity, counts.numpy().reshape(-1, COUNTS), PackedPages(*parts))
            self.counts.pages_out += len(keys)
            self.counts.bytes_out += sum(map(len, made.values()))
            return made

        self.stack.write(make, packed.far.numel() + packed.near.numel(), place)

    def num_completed_offloads(self) -> int:
        """Offloads are done for the tree once they are queued: what is ordered later comes later."""
        return self._completed

    def pop_completed_offload(self) -> bool:
        """Consume the oldest."""
        self._completed -= 1
        return True

    # ---- the linker's own life ----

    def reset(self) -> None:
        """The tree and the pool are being emptied; what is outside stays."""
        self.loading.clear()
        self.from_store.clear()
        self._missed.clear()
        self._completed = 0

    def close(self) -> None:
        """Write what is to be written, and end."""
        self.stack.close()


def _names(keys: Sequence[str], part: Part) -> list[PageName]:
    return [PageName(key, part) for key in keys]
