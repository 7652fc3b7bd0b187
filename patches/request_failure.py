"""Targets: ``Scheduler.handle_generate_request`` and ``Scheduler.handle_embedding_request`` of sglang 0.5.23.

Reason: an exception while one request is taken in ends the scheduler, and with it everybody's requests. Nothing has
been computed for that request yet, so it alone is given up, with HTTP 500 and the exception in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from leankv_patches import hook

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
TARGETS: dict[str, list[str] | None] = {
    f"{_SCHEDULER}.handle_generate_request": ["self", "recv_req", "mm_input_error"],
    f"{_SCHEDULER}.handle_embedding_request": ["self", "recv_req", "mm_input_error"],
}
"""What is hooked, with its arguments."""

logger = logging.getLogger(__name__)


def take_in(original: Callable[..., Any], scheduler: Any, recv_req: Any, **named: Any) -> Any:
    """Take a request in, or end it alone."""
    try:
        return original(scheduler, recv_req, **named)
    except Exception as error:
        logger.exception("Request %s could not be taken in and is given up.", recv_req.rid)
        _forget(scheduler, recv_req.rid)
        _answer(scheduler, recv_req, f"The server could not take this request in: {type(error).__name__}.")
        return None


def _forget(scheduler: Any, rid: str) -> None:
    """It may have been queued before the exception came."""
    scheduler.waiting_queue[:] = [req for req in scheduler.waiting_queue if req.rid != rid]
    waiting = scheduler.grammar_manager.grammar_queue
    waiting[:] = [req for req in waiting if req.rid != rid]


def _answer(scheduler: Any, recv_req: Any, sentence: str) -> None:
    from sglang.srt.managers.io_struct import AbortReq

    reason = {"type": "abort", "message": sentence, "status_code": HTTPStatus.INTERNAL_SERVER_ERROR.value}
    scheduler.send_abort_output(AbortReq(rid=recv_req.rid, finished_reason=reason), recv_req)


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    for target in TARGETS:
        hook.register(target, take_in, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "taking a request in")
