"""SGLang's unified radix cache over compressed pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from leankv_sglang.kvcache.tree.paged_component import PagedComponent

WATERMARK = 1 / 8
"""Part of the pool below which pages are trimmed before anything asks for their memory."""


class LeanKVRadixCache(UnifiedRadixCache):
    """Hits end only where the near parts they read are held; pages shrink before they are dropped."""

    @property
    def paged(self) -> PagedComponent:
        """The component that knows pages."""
        component = self.components[ComponentType.FULL]
        assert isinstance(component, PagedComponent)
        return component

    def _match_tree(self, params: Any) -> Any:
        if not self.disable:
            key = params.key
            params = replace(params, key=key[: self.paged.legal_length(key)])
        return super()._match_tree(params)

    def insert(self, params: Any) -> Any:
        """Insert pages, trued up as far as their costs are known."""
        self.paged.pool.settle()
        return super().insert(params)

    def _reset_full(self) -> None:
        super()._reset_full()
        self.paged.forget()

    def relieve(self) -> None:
        """Trim until an eighth of the pool is free or nothing is left to trim.

        Admission counts free and evictable memory, and what running requests could do without is neither; so it is
        taken from them, and from everybody else, a little before it is needed.
        """
        self.paged.trim_until(int(WATERMARK * self.paged.ledger.units))


def create_cache(ctx: Any) -> Any:
    """Factory for SGLang's registry of radix caches."""
    from sglang.srt.mem_cache.registry import create_unified_radix_cache

    ctx.params.component_registry_override = {ComponentType.FULL: PagedComponent}
    return create_unified_radix_cache(ctx, cache_class=LeanKVRadixCache)
