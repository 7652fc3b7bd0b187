"""Target: ``ReqToTokenPool.alloc`` of sglang 0.5.23.

Reason: pages are committed with their request's thresholds, and a forward knows requests by their rows only. SGLang
offers a callback for rows (``register_on_alloc_rows``) that does not say for which requests; a hook does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.alloc"


def install(given: Callable[[Any, list[Any]], None]) -> None:
    """Have ``given(pool, reqs)`` called when requests have got their rows. Call while sglang loads its plugins."""

    def after(result: Any, pool: Any, reqs: list[Any]) -> None:
        if result is not None:
            given(pool, reqs)

    hook.register(TARGET, after, "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.problem(TARGET, "the allocation of request rows", ["self", "reqs"])
