"""Targets: ``Scheduler.__init__``, ``DetokenizerManager.__init__`` and ``_set_envs_and_config`` of sglang 0.5.23.

Reason: a process that cannot start prints a page and has the launcher kill itself, exit code 137. Here it tells why,
and the launcher, which listens to SIGQUIT itself, ends with a sentence.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from leankv_patches import hook

_LAUNCHER = "sglang.srt.entrypoints.engine._set_envs_and_config"
_ARGUMENTS = ["self", "server_args", "port_args"]
TARGETS: dict[str, list[str] | None] = {
    "sglang.srt.managers.scheduler.Scheduler.__init__": _ARGUMENTS,
    "sglang.srt.managers.detokenizer_manager.DetokenizerManager.__init__": _ARGUMENTS,
}
"""What is hooked in the processes of a server, with its arguments."""


def install(report: Callable[[BaseException], None]) -> None:
    """Have what stops a process while it starts given to ``report``. Call while sglang loads its plugins."""

    def around(original: Callable[..., Any], process: Any, *given: Any, **named: Any) -> None:
        try:
            original(process, *given, **named)
        except Exception as error:
            report(error)
            raise

    for target in TARGETS:
        hook.register(target, around, "AROUND")


def install_launcher(on_failure: Callable[..., None]) -> None:
    """Have SIGQUIT, by which a process says that it failed, handled by ``on_failure`` until the server runs."""

    def after(_: Any, server_args: Any) -> None:
        if server_args.custom_sigquit_handler is None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGQUIT, on_failure)

    hook.register(_LAUNCHER, after, "AFTER")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "a failed start")


def launcher_problem() -> str | None:
    """The same of the launcher's hook."""
    return hook.problem(_LAUNCHER, "the launcher's signals", ["server_args"])
