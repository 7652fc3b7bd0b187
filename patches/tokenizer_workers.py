"""Targets: ``Process.start``, ``Multiprocess.handle_int`` and ``join_all`` of ``uvicorn.supervisors.multiprocess``, by
which SGLang 0.5.23 runs several tokenizer workers.

Reason: a worker that has no request left tells the schedulers to end, also while others still answer; it leaves by an
exception in its event loop, a traceback. Of Ctrl-C the launcher tells workers no more than of SIGTERM, and ends with 0.
Here workers leave Ctrl-C to the launcher, which tells them, and end as a lone one does; then it ends the schedulers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from leankv_patches import hook
from leankv_patches.forced_end import HURRY_SECONDS, ONE_SIGNAL
from leankv_patches.quiet_children import spawn_deaf

_UVICORN = "uvicorn.supervisors.multiprocess"
_START = f"{_UVICORN}.Process.start"
_INTERRUPT = f"{_UVICORN}.Multiprocess.handle_int"
_JOIN = f"{_UVICORN}.Multiprocess.join_all"
TARGETS: dict[str, list[str] | None] = {target: ["self"] for target in (_START, _INTERRUPT, _JOIN)}
"""What is hooked, with its arguments."""
INTERRUPTED = signal.SIGURG
"""What tells a worker of Ctrl-C: a process that does not listen for it, or not any more, is not harmed by it."""
SCHEDULER_SECONDS = 10.0
"""What schedulers get to end by themselves: with what workers may take beside, as much as SGLang gives them."""
WORKER_SECONDS = 8.0
"""What workers get beside the time for their requests; one that has just started waits for its own warm-up."""
_POLL = 0.05

logger = logging.getLogger(__name__)


def install(note_interrupt: Callable[[], None], was_interrupted: Callable[[], bool], seconds: float) -> None:
    """Register the hooks in the launching process.

    Args:
        note_interrupt: told of Ctrl-C.
        was_interrupted: whether that was pressed.
        seconds: how long requests may go on where it was not.
    """

    def pass_on(supervisor: Any) -> None:
        note_interrupt()
        _interrupt(supervisor)

    def told_again(supervisor: Any) -> bool:
        if signal.SIGINT in supervisor.signal_queue:
            note_interrupt()
        return any(number in supervisor.signal_queue for number in (signal.SIGINT, signal.SIGTERM))

    def wait(supervisor: Any) -> None:
        begun = time.monotonic()
        limit = begun + WORKER_SECONDS + (0.0 if was_interrupted() else seconds)
        while time.monotonic() < limit and any(worker.exitcode is None for worker in supervisor.processes):
            if time.monotonic() < begun + ONE_SIGNAL:
                supervisor.signal_queue.clear()
            elif told_again(supervisor):
                _interrupt(supervisor)
                limit = min(limit, time.monotonic() + HURRY_SECONDS)
                break
            time.sleep(_POLL)
        end_workers(supervisor.processes, limit - time.monotonic())

    def after_workers(_result: Any, supervisor: Any) -> None:
        try:
            end_schedulers(lambda: told_again(supervisor))
        except Exception as error:
            logger.warning("The schedulers cannot be told to end, and are killed: %r", error)

    hook.register(_START, partial(spawn_deaf, (signal.SIGINT,)), "AROUND")
    hook.register(_INTERRUPT, pass_on, "BEFORE")
    hook.register(_JOIN, wait, "BEFORE")
    hook.register(_JOIN, after_workers, "AFTER")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "the end of tokenizer workers")


def end_workers(workers: Iterable[Any], seconds: float) -> None:
    """Wait for uvicorn's processes, which know that they should end, and kill those that have not in time."""
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.process.join(max(deadline - time.monotonic(), 0.0))
        if worker.exitcode is None:
            worker.process.kill()


def _interrupt(supervisor: Any) -> None:
    """Have workers abort what they still do."""
    for worker in supervisor.processes:
        if worker.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, INTERRUPTED)


def end_schedulers(told_again: Callable[[], bool]) -> None:
    """Have the schedulers give back what they hold, and wait for them: what SGLang's one tokenizer does at its end.

    Args:
        told_again: whether nobody has patience for that.
    """
    from sglang.srt.entrypoints import http_server
    from sglang.srt.managers.io_struct import ShutdownReq, async_sock_send
    from sglang.srt.managers.tokenizer_manager import collect_scheduler_processes

    router = http_server._global_state.tokenizer_manager
    # It would take their end for a crash.
    router._subprocess_watchdog.stop()
    sent = asyncio.run_coroutine_threadsafe(async_sock_send(router.send_to_scheduler, ShutdownReq()), router._loop)
    deadline = time.monotonic() + SCHEDULER_SECONDS
    sent.result(SCHEDULER_SECONDS)
    while time.monotonic() < deadline and collect_scheduler_processes() and not told_again():
        time.sleep(_POLL)


def is_worker(manager: Any) -> bool:
    """Whether a tokenizer manager is one of several."""
    from sglang.srt.managers.multi_tokenizer_mixin import TokenizerWorker

    return isinstance(manager, TokenizerWorker)


def server_here() -> Any:
    """The uvicorn server of this process, None where none listens for SIGTERM: before SGLang does it itself."""
    from uvicorn import Server

    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, Server) else None


def stop(manager: Any, server: Any) -> None:
    """Have a worker's server end, once nothing is left of its requests; called from a task of its manager."""
    for task in manager.asyncio_tasks:
        if task is not asyncio.current_task():
            task.cancel()
    server.should_exit = True
