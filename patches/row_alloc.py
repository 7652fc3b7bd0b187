"""Target: ``ReqToTokenPool.alloc`` of sglang 0.5.23.

Reason: pages are committed with their request's thresholds, and a forward knows requests by their rows only. SGLang
offers a callback for rows (``register_on_alloc_rows``) that does not say for which requests; a hook does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

TARGET = "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.alloc"


def install(given: Callable[[Any, list[Any]], None]) -> None:
    """Have ``given(pool, reqs)`` called when requests have got their rows. Call while sglang loads its plugins."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def after(result: Any, pool: Any, reqs: list[Any]) -> None:
        if result is not None:
            given(pool, reqs)

    HookRegistry.register(TARGET, after, HookType.AFTER)


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.plugins.hook_registry import HookRegistry

    if TARGET not in HookRegistry._patched:
        return "the allocation of request rows (ReqToTokenPool.alloc) could not be hooked"
    names = list(inspect.signature(inspect.unwrap(ReqToTokenPool.alloc)).parameters)
    if names != ["self", "reqs"]:
        return f"ReqToTokenPool.alloc takes {names} now"
    return None
