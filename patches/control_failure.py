"""Targets: ``Scheduler.init_request_dispatcher`` and ``Scheduler.send_control_output`` of sglang 0.5.23.

Reason: an exception while the scheduler handles a control request, as starting a record that the server was not set up
for, ends it, and with it everybody's requests. Here whoever asked is told, by an answer of the type that is waited for
(``control_waits.py`` reads it), and the server goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from leankv_patches import hook

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_DISPATCH = f"{_SCHEDULER}.init_request_dispatcher"
_SEND = f"{_SCHEDULER}.send_control_output"
TARGETS: dict[str, list[str] | None] = {_DISPATCH: ["self"], _SEND: ["self", "output", "recv_req"]}
"""What is hooked, with its arguments."""
MARK = "LEANKV_FAILED "
"""How ``rid`` of an answer begins that says why there is none: all answers have that field, and no use for it."""
_LONGEST = 500

logger = logging.getLogger(__name__)


def guarded(dispatch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A dispatcher whose control requests fail alone; those that generate have guards of their own."""
    from sglang.srt.managers import io_struct

    generating = (
        io_struct.TokenizedGenerateReqInput,
        io_struct.TokenizedEmbeddingReqInput,
        io_struct.BatchTokenizedGenerateReqInput,
        io_struct.BatchTokenizedEmbeddingReqInput,
    )

    def answer(request: Any) -> Any:
        if isinstance(request, generating):
            return dispatch(request)
        try:
            return dispatch(request)
        except Exception as error:
            logger.exception("%s failed, and is answered so.", type(request).__name__)
            return failure(request, sentence(request, error))

    return answer


def sentence(request: Any, error: Exception) -> str:
    """What whoever asked is told: control requests are an operator's, so the exception may be read."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST].rstrip(".: ")
    return f"The server could not do this ({type(request).__name__}): {said}."


def failure(request: Any, said: str) -> Any:
    """An answer of the type that is waited for, which says that there is none; None where nobody waits for one."""
    from msgspec.structs import fields
    from sglang.srt.managers import io_struct

    kind = getattr(io_struct, f"{type(request).__name__.removesuffix('Input')}Output", None)
    if kind is None:
        return None
    given = {field.name: _empty(field.type) for field in fields(kind) if field.required}
    told = {"success": False, "message": said, "error_message": said, "error": said}
    given |= {field.name: told[field.name] for field in fields(kind) if field.name in told}
    if "session_id" in given:
        # By which the waiting side finds who opens it.
        given["session_id"] = request.session_id
    return kind(**{**given, "rid": MARK + said})


def _empty(kind: Any) -> Any:
    """A value that the waiting process can decode."""
    from msgspec import ValidationError, convert

    empty: tuple[Any, ...] = (None, False, 0, "", {}, [])
    for value in empty:
        try:
            convert(value, kind)
        except ValidationError:
            continue
        return value
    raise TypeError(f"no empty value is known of {kind}")


def send(original: Callable[..., Any], scheduler: Any, output: Any, recv_req: Any) -> Any:
    """Send an answer, or say why it cannot be sent."""
    try:
        return original(scheduler, output, recv_req)
    except Exception as error:
        logger.exception("The answer to %s cannot be sent.", type(recv_req).__name__)
        if (told := failure(recv_req, sentence(recv_req, error))) is not None:
            original(scheduler, told, recv_req)
        return None


def _guard(_result: Any, scheduler: Any) -> None:
    scheduler._request_dispatcher = guarded(scheduler._request_dispatcher)


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    hook.register(_DISPATCH, _guard, "AFTER")
    hook.register(_SEND, send, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "control requests that fail")
