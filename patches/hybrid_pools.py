"""Targets: ``SWAKVPool`` and ``SWATokenToKVPoolAllocator`` in ``sglang.srt.mem_cache.kv_cache_configurator``, and
``HybridSWAPoolConfigurator.__init__``; sglang 0.5.23.

Reason: for a model with sliding windows SGLang names its pool and its allocator itself; a platform may choose only the
class of which both halves of each are. Full layers live in compressed pages here and windows in raw ones, logical ids
outnumber what the allocator's table has room for, and a token of full layers costs what its page reserves.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from leankv_patches import hook

MODULE = "sglang.srt.mem_cache.kv_cache_configurator"
SIZES = "sglang.srt.model_executor.pool_configurator.HybridSWAPoolConfigurator.__init__"
NAMES = ("SWAKVPool", "SWATokenToKVPoolAllocator")


def install(pools: Callable[[], tuple[type, type]], bytes_per_token: Callable[[Any, int], int]) -> None:
    """Have ``pools()`` say which classes take the place of pool and allocator, and ``bytes_per_token(configurator,
    num_layers)`` what a token of so many full layers costs. Call while sglang loads its plugins."""

    def after(_result: None, sizes: Any, kvc: Any) -> None:
        # In the process that builds them, just before it does.
        module = import_module(MODULE)
        for name, chosen in zip(NAMES, pools(), strict=True):
            setattr(module, name, chosen)
        if layers := sizes._full_layers_num:
            sizes._full_per_token = -(-bytes_per_token(kvc, layers) // layers)
            sizes._recompute_cell_size()

    hook.register(SIZES, after, "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take or its target changed its arguments, else None."""
    return hook.problem(SIZES, "the sizes of pools with sliding windows", ["self", "kvc"])
