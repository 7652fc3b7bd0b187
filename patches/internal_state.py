"""Target: ``SchedulerInternalStateController.get_internal_state`` of sglang 0.5.23.

Reason: ``/get_server_info`` has no seam for a pool's own figures; a hook adds a ``leankv`` entry to the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TARGET = "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController.get_internal_state"


def install(report: Callable[[Any], dict[str, Any]]) -> None:
    """Add ``report(scheduler)`` under ``leankv``. Call while sglang loads its plugins."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def after(result: Any, controller: Any, *_args: Any) -> Any:
        result.internal_state["leankv"] = report(controller.scheduler)
        return result

    HookRegistry.register(TARGET, after, HookType.AFTER)


def problem() -> str | None:
    """A sentence if the hook did not take, else None."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if TARGET not in HookRegistry._patched:
        return "the server info (SchedulerInternalStateController.get_internal_state) could not be hooked"
    return None
