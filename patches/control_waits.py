"""Targets: where a tokenizer manager of sglang 0.5.23 waits for the scheduler's answer to a control request.

Reason: these waits know no failure and no end. Here an answer that says why there is none (``control_failure.py``) is
an exception for whoever asked, and so is the end of the server, which else waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from leankv_patches import hook
from leankv_patches.control_failure import MARK

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
_CONTROL = "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin"
_WAITS: dict[str, list[str] | None] = {
    "sglang.srt.managers.communicator.FanOutCommunicator.__call__": ["self", "obj"],
    f"{_MANAGER}._wait_for_model_update_from_disk": ["self", "obj"],
    f"{_CONTROL}.open_session": ["self", "obj", "request"],
}
_PROFILE = f"{_CONTROL}._execute_profile"
TARGETS: dict[str, list[str] | None] = {**_WAITS, _PROFILE: ["self", "req"]}
"""What is hooked, with its arguments."""

_waiting: set[asyncio.Future[Any]] = set()
_ended = False


class ControlError(RuntimeError):
    """A control request that got no answer; SGLang's routes answer with its ``status_code`` and its sentence."""

    def __init__(self, said: str, status: HTTPStatus) -> None:
        super().__init__(said)
        self.status_code = status.value


async def wait(original: Callable[..., Awaitable[Any]], *given: Any, **named: Any) -> Any:
    """Wait for an answer.

    Raises:
        ControlError: the scheduler says why there is none, or the server ends.
    """
    if _ended:
        raise _ending()
    task = asyncio.ensure_future(original(*given, **named))
    _waiting.add(task)
    try:
        answer = await task
    except asyncio.CancelledError:
        if _ended:
            raise _ending() from None
        raise
    finally:
        _waiting.discard(task)
    for one in answer if isinstance(answer, list) else ():
        said = getattr(one, "rid", None) or ""
        if said.startswith(MARK):
            raise ControlError(said.removeprefix(MARK), HTTPStatus.INTERNAL_SERVER_ERROR)
    return answer


def _ending() -> ControlError:
    return ControlError("The server is shutting down.", HTTPStatus.SERVICE_UNAVAILABLE)


async def profile(original: Callable[..., Awaitable[Any]], manager: Any, req: Any) -> Any:
    """Start or stop a profile.

    Raises:
        ValueError: what was asked for does not fit, as to stop one that does not run.
    """
    try:
        return await original(manager, req)
    except ControlError:
        raise
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def count() -> int:
    """How many control requests wait for an answer."""
    return len(_waiting)


def give_up() -> None:
    """The server ends: nobody waits any longer, or begins to."""
    global _ended
    _ended = True
    for task in list(_waiting):
        task.cancel()


def install() -> None:
    """Register the hooks."""
    for target in _WAITS:
        hook.register(target, wait, "AROUND")
    hook.register(_PROFILE, profile, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "answers to control requests")
