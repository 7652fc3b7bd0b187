"""Target: ``SchedulerInternalStateController.get_internal_state`` of sglang 0.5.23.

Reason: ``/server_info`` has no seam for a pool's own figures; a hook adds a ``leankv`` entry to the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController.get_internal_state"


def install(report: Callable[[Any], dict[str, Any]]) -> None:
    """Add ``report(scheduler)`` under ``leankv``. Call while sglang loads its plugins."""

    def after(result: Any, controller: Any, *_: Any, **__: Any) -> Any:
        result.internal_state["leankv"] = report(controller.scheduler)
        return result

    hook.register(TARGET, after, "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take, else None."""
    return hook.problem(TARGET, "the server info")
