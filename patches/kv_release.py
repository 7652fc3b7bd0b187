"""Target: ``release_kv_cache`` of sglang 0.5.23.

Reason: a finished request is told the bytes of its KV. By the time its output is sent its row and pages are given back,
and there is no seam in between; a hook looks while the row still names the pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.mem_cache.common.release_kv_cache"


def install(note: Callable[[Any, Any], None]) -> None:
    """Have ``note(req, tree_cache)`` called before a request's KV is released. Call while sglang loads its plugins."""

    def before(req: Any, tree_cache: Any, **_: Any) -> None:
        note(req, tree_cache)

    hook.register(TARGET, before, "BEFORE")


def problem() -> str | None:
    """A sentence if the hook did not take, where it must or at all, or the target changed its arguments, else None."""
    from sglang.srt.managers.scheduler_components import batch_result_processor
    from sglang.srt.mem_cache import common

    what = "the release of a request's KV"
    if batch_result_processor.release_kv_cache is not common.release_kv_cache:
        return f"{what} (release_kv_cache) could not be hooked"
    return hook.problem(TARGET, what, ["req", "tree_cache", "checkpoint"])
