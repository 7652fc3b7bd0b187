"""Target: ``KVCacheConfigurator.config_from_budget`` of sglang 0.5.23.

Reason: SGLang gives all of ``--mem-fraction-static`` that the weights leave to the token pool. What else a cache keeps,
for us raw pages and what commits take, would come out of the rest, which is meant for activations. There is
no seam for a fixed share, so a hook takes it off the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator.config_from_budget"


def install(for_pages: Callable[[Any, int], int]) -> None:
    """Have ``for_pages(configurator, budget_bytes)`` say what the pool may take. Call while sglang loads plugins."""

    def around(original: Callable[..., Any], kvc: Any, budget_bytes: int, *rest: Any, **named: Any) -> Any:
        return original(kvc, for_pages(kvc, budget_bytes), *rest, **named)

    hook.register(TARGET, around, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.problem(TARGET, "the pool's share of memory", ["self", "budget_bytes", "cap_tokens"])
