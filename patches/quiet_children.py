"""Targets: ``Engine._launch_scheduler_processes`` and ``_launch_detokenizer_subprocesses`` of sglang 0.5.23.

Reason: Ctrl-C, and SIGTERM to a process group, reach a server's processes all at once: children die with tracebacks and
the launcher takes that for a crash. Children inherit what is blocked, so that the launcher alone hears and ends them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from typing import Any

from leankv_patches import hook

_ENGINE = "sglang.srt.entrypoints.engine.Engine"
TARGETS: dict[str, list[str] | None] = {
    f"{_ENGINE}._launch_scheduler_processes": None,
    f"{_ENGINE}._launch_detokenizer_subprocesses": None,
}
"""What is hooked."""
LAUNCHER_ONLY = (signal.SIGINT, signal.SIGTERM)


def spawn_quietly(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Start processes that do not hear what is for the launcher, which hears it once they are started."""
    return spawn_deaf(LAUNCHER_ONLY, original, *given, **named)


def spawn_deaf(numbers: Iterable[signal.Signals], original: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Start processes that do not hear these signals, which this one hears once they are started."""
    # Where it is not there yet, starting it unblocks these signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        return original(*given, **named)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def install() -> None:
    """Register the hooks. Call before the engine starts."""
    for target in TARGETS:
        hook.register(target, spawn_quietly, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take, else None."""
    return hook.first_problem(TARGETS, "starting processes")
