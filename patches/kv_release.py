"""Target: ``release_kv_cache`` of sglang 0.5.23.

Reason: a finished request is told the bytes of its KV. By the time its output is sent its row and pages are given back,
and there is no seam in between; a hook looks while the row still names the pages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

TARGET = "sglang.srt.mem_cache.common.release_kv_cache"


def install(note: Callable[[Any, Any], None]) -> None:
    """Have ``note(req, tree_cache)`` called before a request's KV is released. Call while sglang loads its plugins."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def before(req: Any, tree_cache: Any, **_: Any) -> None:
        note(req, tree_cache)

    HookRegistry.register(TARGET, before, HookType.BEFORE)


def problem() -> str | None:
    """A sentence if the hook did not take, where it must or at all, or the target changed its arguments, else None."""
    from sglang.srt.managers.scheduler_components import batch_result_processor
    from sglang.srt.mem_cache import common
    from sglang.srt.plugins.hook_registry import HookRegistry

    if TARGET not in HookRegistry._patched or batch_result_processor.release_kv_cache is not common.release_kv_cache:
        return "the release of a request's KV (release_kv_cache) could not be hooked"
    names = list(inspect.signature(inspect.unwrap(common.release_kv_cache)).parameters)
    if names != ["req", "tree_cache", "checkpoint"]:
        return f"release_kv_cache takes {names} now"
    return None
