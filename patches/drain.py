"""Targets: ``TokenizerManager.sigterm_watchdog`` and ``auto_create_handle_loop`` of sglang 0.5.23.

Reason: after SIGTERM a busy server drains without limit, and after Ctrl-C it waits for every open request. Here what
still runs after a while is aborted, so that clients get an answer and the server ends; by force, if it has to be.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from leankv_patches import control_waits, forced_end, hook, tokenizer_workers

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
TARGETS: dict[str, list[str] | None] = {
    f"{_MANAGER}.sigterm_watchdog": ["self"],
    f"{_MANAGER}.auto_create_handle_loop": ["self"],
}
"""What is hooked, with its arguments."""
ABORT_SECONDS = 5.0
"""What the scheduler gets to say that it aborted."""
CLOSE_SECONDS = 2
"""What uvicorn gets for connections and tasks once every request is answered; whole seconds, as it wants them."""
INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C."""
_POLL = 0.2

logger = logging.getLogger(__name__)
_interrupted = threading.Event()
_hurried = threading.Event()


def install(seconds: float) -> None:
    """Register the hooks: what runs is aborted ``seconds`` after SIGTERM, and at once after Ctrl-C."""

    servers: dict[Any, Any] = {}
    ends: dict[Any, forced_end.ForcedEnd] = {}

    async def drain(original: Callable[..., Awaitable[None]], manager: Any) -> None:
        while not manager.gracefully_exit:
            await asyncio.sleep(_POLL)
        await end_requests(manager, seconds)
        if end := ends.get(manager):
            end.tell(0)
        if server := servers.get(manager):
            tokenizer_workers.stop(manager, server)
        else:
            await original(manager)

    def listen(original: Callable[..., None], manager: Any) -> None:
        first = manager.event_loop is None
        if not first or threading.current_thread() is not threading.main_thread():
            original(manager)
            return
        server = tokenizer_workers.server_here()
        if server is not None:
            # By default it waits for ever for connections and tasks, of which none is left that has a request of ours.
            server.config.timeout_graceful_shutdown = CLOSE_SECONDS
        if tokenizer_workers.is_worker(manager):
            servers[manager] = server
        original(manager)
        for number in (signal.SIGINT, tokenizer_workers.INTERRUPTED):
            manager.event_loop.add_signal_handler(number, _interrupt, manager)
        # A worker is ended by its launcher, and a process without a server is its owner's.
        if server is not None and manager not in servers:
            ends[manager] = _watch(manager, server, seconds)

    hook.register(f"{_MANAGER}.sigterm_watchdog", drain, "AROUND")
    hook.register(f"{_MANAGER}.auto_create_handle_loop", listen, "AROUND")


def _watch(manager: Any, server: Any, seconds: float) -> forced_end.ForcedEnd:
    def patience(signum: int) -> float:
        return (0.0 if signum == signal.SIGINT else seconds) + ABORT_SECONDS + forced_end.END_SECONDS

    def end() -> None:
        forced_end.end_process(manager, server, lambda: INTERRUPTED_CODE if was_interrupted() else 0)

    watch = forced_end.ForcedEnd(patience, _hurried.set, end)
    for number in (signal.SIGTERM, signal.SIGINT):
        watch.listen(number)
    return watch


async def end_requests(manager: Any, seconds: float) -> None:
    """Return when no request is left, those that control the server included.

    Args:
        manager: SGLang's TokenizerManager.
        seconds: how long requests may go on; none, once the server is interrupted or told again to end.
    """
    begun = time.monotonic()
    while (manager.rid_to_state or control_waits.count()) and time.monotonic() < begun + seconds and not _in_haste():
        await asyncio.sleep(_POLL)
    control_waits.give_up()
    # SGLang goes on by stopping the event loop for a while, before which these are answered.
    await asyncio.sleep(_POLL)
    if not manager.rid_to_state:
        return
    logger.warning("Aborting %d requests that still run.", len(manager.rid_to_state))
    manager.abort_request(abort_all=True)
    begun = time.monotonic()
    while manager.rid_to_state and time.monotonic() < begun + ABORT_SECONDS:
        await asyncio.sleep(_POLL)
    if not manager.rid_to_state:
        return
    for rid in list(manager.rid_to_state):
        _give_up(manager, rid)
    await asyncio.sleep(_POLL)


def _give_up(manager: Any, rid: str) -> None:
    """Answer a request whose scheduler says nothing any more."""
    from sglang.srt.managers.io_struct import AbortReq

    status = HTTPStatus.SERVICE_UNAVAILABLE.value
    reason = {"type": "abort", "message": "The server is shutting down.", "status_code": status}
    manager._handle_abort_req(AbortReq(rid=rid, finished_reason=reason))
    manager.rid_to_state.pop(rid, None)


def _in_haste() -> bool:
    return was_interrupted() or _hurried.is_set()


def _interrupt(manager: Any) -> None:
    note_interrupt()
    manager.gracefully_exit = True


def note_interrupt() -> None:
    """Ctrl-C has been pressed."""
    _interrupted.set()


def was_interrupted() -> bool:
    """Whether Ctrl-C ended, or ends, the server of this process."""
    return _interrupted.is_set()


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "the end of a server")
