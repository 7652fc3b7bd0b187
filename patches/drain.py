"""Targets: ``TokenizerManager.sigterm_watchdog`` and ``auto_create_handle_loop`` of sglang 0.5.23.

Reason: after SIGTERM a busy server drains without limit, and after Ctrl-C it waits for every open request. Here what
still runs after a while is aborted, so that clients get an answer and the server ends.
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

from leankv_patches import hook, tokenizer_workers

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
TARGETS: dict[str, list[str] | None] = {
    f"{_MANAGER}.sigterm_watchdog": ["self"],
    f"{_MANAGER}.auto_create_handle_loop": ["self"],
}
"""What is hooked, with its arguments."""
ABORT_SECONDS = 5.0
"""What the scheduler gets to say that it aborted."""
_POLL = 0.2

logger = logging.getLogger(__name__)
_interrupted = threading.Event()


def install(seconds: float) -> None:
    """Register the hooks: what runs is aborted ``seconds`` after SIGTERM, and at once after Ctrl-C."""

    servers: dict[Any, Any] = {}

    async def drain(original: Callable[..., Awaitable[None]], manager: Any) -> None:
        while not manager.gracefully_exit:
            await asyncio.sleep(_POLL)
        await end_requests(manager, seconds)
        if server := servers.get(manager):
            tokenizer_workers.stop(manager, server)
        else:
            await original(manager)

    def listen(original: Callable[..., None], manager: Any) -> None:
        first = manager.event_loop is None
        if not first or threading.current_thread() is not threading.main_thread():
            original(manager)
            return
        if tokenizer_workers.is_worker(manager):
            servers[manager] = tokenizer_workers.server_here()
        original(manager)
        for number in (signal.SIGINT, tokenizer_workers.INTERRUPTED):
            manager.event_loop.add_signal_handler(number, _interrupt, manager)

    hook.register(f"{_MANAGER}.sigterm_watchdog", drain, "AROUND")
    hook.register(f"{_MANAGER}.auto_create_handle_loop", listen, "AROUND")


async def end_requests(manager: Any, seconds: float) -> None:
    """Return when no request is left.

    Args:
        manager: SGLang's TokenizerManager.
        seconds: how long requests may go on; none, once the server is interrupted.
    """
    begun = time.monotonic()
    while manager.rid_to_state and time.monotonic() < begun + seconds and not was_interrupted():
        await asyncio.sleep(_POLL)
    if not manager.rid_to_state:
        return
    logger.warning("Aborting %d requests that still run.", len(manager.rid_to_state))
    manager.abort_request(abort_all=True)
    begun = time.monotonic()
    while manager.rid_to_state and time.monotonic() < begun + ABORT_SECONDS:
        await asyncio.sleep(_POLL)
    for rid in list(manager.rid_to_state):
        _give_up(manager, rid)


def _give_up(manager: Any, rid: str) -> None:
    """Answer a request whose scheduler says nothing any more."""
    from sglang.srt.managers.io_struct import AbortReq

    status = HTTPStatus.SERVICE_UNAVAILABLE.value
    reason = {"type": "abort", "message": "The server is shutting down.", "status_code": status}
    manager._handle_abort_req(AbortReq(rid=rid, finished_reason=reason))
    manager.rid_to_state.pop(rid, None)


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
