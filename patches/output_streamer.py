"""Target: ``Scheduler.get_output_streamer_class`` of sglang 0.5.23.

Reason: a request's output takes additional fields from a subclass of the output streamer, and a subclass of the
scheduler is asked for it. SGLang has no seam for the latter; a hook replaces the answer.
"""

from __future__ import annotations

from collections.abc import Callable

from leankv_patches import hook

TARGET = "sglang.srt.managers.scheduler.Scheduler.get_output_streamer_class"
_NEEDED = ("has_additional_customized_info", "build_additional_customized_info")


def install(extend: Callable[[type], type]) -> None:
    """Have schedulers use ``extend(their class)``. Call while sglang loads its plugins."""
    hook.register(TARGET, lambda result, _scheduler: extend(result), "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take or the streamer lost what a subclass overrides, else None."""
    from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

    if unhooked := hook.problem(TARGET, "a request's output"):
        return unhooked
    if missing := [name for name in _NEEDED if not hasattr(SchedulerOutputStreamer, name)]:
        return f"SchedulerOutputStreamer has no {', '.join(missing)} now"
    return None
