"""SGLang's unified radix cache over compressed pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from sglang.srt.mem_cache.common import coalesce_ranges
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.session.streaming_session import is_virtual_node

from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.page_rows import PageRows
from leankv_sglang.kvcache.tree.session import PagedSession
from leankv_sglang.kvcache.tree.shrinking_component import ShrinkingComponent
from leankv_sglang.kvcache.tree.window_component import WindowComponent

WATERMARK = 1 / 8
"""Part of the pool below which pages are trimmed before anything asks for their memory."""


class LeanKVRadixCache(UnifiedRadixCache):
    """Hits end only where the near parts they read are held; pages shrink before they are dropped.

    Which pages a request's row names is known on the host (:class:`PageRows`), so inserting and freeing it asks no
    device.
    """

    component: ClassVar[type[ShrinkingComponent]] = ShrinkingComponent

    def __init__(self, params: Any) -> None:
        params.component_registry_override = {
            **(params.component_registry_override or {}),
            ComponentType.FULL: self.component,
            ComponentType.SWA: WindowComponent,
        }
        super().__init__(params)
        self.page_rows: PageRows = self.paged.pool.mirror_rows(self.req_to_token_pool)
        self.page_rows.prefix_of = self._prefix_pages
        self.session = PagedSession(self)
        self.paged.pool.left_open = self.session.open_pages

    def _path(self, node: Any) -> Pages:
        return self.paged.path(self.resolve_node_handle(node))

    def _prefix_pages(self, req: Any) -> Pages:
        return self._path(req.last_node)[: req.prefix_len // self.page_size]

    @property
    def paged(self) -> ShrinkingComponent:
        """The component that knows pages."""
        component = self.components[ComponentType.FULL]
        assert isinstance(component, ShrinkingComponent)
        return component

    def _match_tree(self, params: Any) -> Any:
        if self.disable:
            return super()._match_tree(params)
        key = params.key
        length = self.paged.legal_length(key)
        # A request is given the recurrent state of the last node found, so it is not given one before that is certain.
        asked = replace(params, cow_mamba=False)
        result = first = super()._match_tree(replace(asked, key=key[:length]))
        # Other kinds of layers may have ended the hit earlier, where ours cannot end.
        while (ends := result.device_prefix_len + result.host_hit_length) < length:
            if (length := self.paged.legal_length(key[:ends])) == ends:
                break
            result = super()._match_tree(replace(asked, key=key[:length]))
        if params.cow_mamba:
            result = super()._match_tree(replace(params, key=key[:ends]))
        # What says where a window, or a state, is worth restoring: as far as our pages reach.
        return result._replace(
            full_kv_hit_length=first.full_kv_hit_length,
            swa_branching_seqlen=first.swa_branching_seqlen,
            mamba_branching_seqlen=first.mamba_branching_seqlen,
        )

    def insert(self, params: Any) -> Any:
        """Insert pages, trued up as far as their costs are known."""
        self.paged.pool.settle()
        return super().insert(params)

    def checkpoint_into_tree(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """Insert a request's tokens; where the tree holds them already, its row names the tree's pages afterwards."""
        row = req.kv.req_pool_idx
        with self.paged.inserting(self.page_rows.of(row, up_to // self.page_size)):
            super().checkpoint_into_tree(req, up_to=up_to, **kwargs)
        if is_virtual_node(req.last_node):  # of a session, and not a page of it was full
            return
        self.page_rows.put(row, 0, self._path(req.last_node)[: req.kv.cache_protected_len // self.page_size])

    def free_kv_row(self, kv: Any, ranges: list[tuple[int, int]]) -> None:
        """Give back positions of a row, a page at a time."""
        for start, end in coalesce_ranges(ranges):
            if start < end:
                assert start % self.page_size == 0, f"a row is freed from {start} on, inside a page"
                pages = self.page_rows.of(kv.req_pool_idx, -(-end // self.page_size), start // self.page_size)
                if self.supports_swa():
                    self._free_windows(kv, start, end)
                self.paged.allocator.release(pages)

    def _free_windows(self, kv: Any, start: int, end: int) -> None:
        """Give back what of a row's windows has not slid past yet."""
        row = self.req_to_token_pool.req_to_token[kv.req_pool_idx]
        gone = kv.swa_dead_lo(self.page_size)
        kept = max(kv.get_evicted_seqlen(ComponentType.SWA), gone)
        for a, b in ((start, min(end, gone)), (max(start, kept), end)):
            if a < b:
                self.token_to_kv_pool_allocator.free_swa_segment(row[a:b], start_pos=a)

    def _reset_full(self) -> None:
        super()._reset_full()
        self.paged.forget()

    def relieve(self) -> None:
        """Trim what running requests hold until an eighth of the pool is free or evictable, or nothing is left to trim.

        Admission counts free and evictable memory, and what running requests could do without is neither; so it is
        taken from them a little before it is needed.
        """
        self.paged.relieve(int(WATERMARK * self.paged.ledger.units))


def create_cache(ctx: Any) -> Any:
    """Factory for SGLang's registry of radix caches."""
    from sglang.srt.mem_cache.registry import create_unified_radix_cache

    return create_unified_radix_cache(ctx, cache_class=LeanKVRadixCache)
