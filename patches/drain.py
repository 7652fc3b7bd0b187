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

from leankv_patches import hook

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

    async def drain(original: Callable[..., Awaitable[None]], manager: Any) -> None:
        while not manager.gracefully_exit:
            await asyncio.sleep(_POLL)
        await end_requests(manager, seconds)
        await original(manager)

    def listen(_: Any, manager: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            manager.event_loop.add_signal_handler(signal.SIGINT, _interrupt, manager)

    hook.register(f"{_MANAGER}.sigterm_watchdog", drain, "AROUND")
    hook.register(f"{_MANAGER}.auto_create_handle_loop", listen, "AFTER")


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
    _interrupted.set()
    manager.gracefully_exit = True


def was_interrupted() -> bool:
    """Whether Ctrl-C ended, or ends, the server of this process."""
    return _interrupted.is_set()


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "the end of a server")
