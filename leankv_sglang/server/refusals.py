"""What a client is told whose request a route cannot read: one sentence, in the form that the route has for errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from leankv_patches.control_waits import ControlError
from leankv_patches.conversion import sentence
from leankv_patches.request_ranges import MISFITS
from leankv_patches.schema_words import schema_sentence
from leankv_sglang.server.middleware import error_body, native_errors

Handler = Callable[[Any, Exception], Awaitable[Any]]

_READS_BODY = "request_body_to_args"
"""Of fastapi."""
_DOCUMENTED = "/v1/systemone"
"""Its documents promise fastapi's own list of errors."""


class _Said(list[dict[str, str | tuple[()]]]):
    """One error as fastapi lists them, and as a sentence."""

    def __str__(self) -> str:
        return str(self[0]["msg"])


class _Told(RequestValidationError):
    """What SGLang's handler, which gives both the list and the string, makes one sentence of."""

    def __init__(self, said: str) -> None:
        super().__init__(_Said([{"type": "value_error", "loc": (), "msg": said}]))

    def __str__(self) -> str:
        return str(self.errors())


def install_refusals(app: Any) -> None:
    """Have an app tell what is wrong with a request; behind this, its own handlers give that their form."""
    handlers = Refusals(app.exception_handlers[RequestValidationError])
    app.add_exception_handler(RequestValidationError, handlers.unreadable)
    app.add_exception_handler(ValueError, handlers.bad_request)
    for kind in MISFITS:
        app.add_exception_handler(kind, handlers.misfit)
    app.add_exception_handler(ControlError, unanswered)
    app.add_exception_handler(Exception, failed)


class Refusals:
    """Handlers of exceptions, before the one that SGLang has for bodies which its models cannot read."""

    def __init__(self, sglangs: Handler) -> None:
        self._sglangs = sglangs

    async def unreadable(self, request: Any, error: Any) -> Any:
        """The answer where a route's model of a body does not know it."""
        if _path(request) == _DOCUMENTED:
            return await self._sglangs(request, error)
        return await self._refuse(request, schema_sentence(error.errors()))

    async def bad_request(self, request: Any, error: Exception) -> Any:
        """The answer where handling ended with an error that says what is wrong with the request.

        Some routes of SGLang do not catch it themselves.
        """
        return await self._refuse(request, sentence(error) if isinstance(error, ValidationError) else str(error))

    async def misfit(self, request: Any, error: Exception) -> Any:
        """The answer where a route's model of a body broke over it; anything else goes on.

        SGLang's models look into fields before their types are checked, and fastapi takes only ValueError for a
        refusal.
        """
        place = error.__traceback__
        while place is not None and place.tb_frame.f_code.co_name != _READS_BODY:
            place = place.tb_next
        if place is None:
            raise error
        return await self._refuse(request, sentence(error))

    async def _refuse(self, request: Any, said: str) -> Any:
        if native_errors(_path(request)):
            return JSONResponse(error_body(said), HTTPStatus.BAD_REQUEST.value)
        return await self._sglangs(request, _Told(said))


async def unanswered(_request: Any, error: Any) -> Any:
    """The answer to a control request that got none from the scheduler."""
    return JSONResponse(error_body(str(error)), error.status_code)


async def failed(_request: Any, error: Exception) -> Any:
    """The answer to a request whose handling ended with any other exception; that goes on into the log."""
    said = f"The server could not handle this request: {type(error).__name__}."
    return JSONResponse(error_body(said), HTTPStatus.INTERNAL_SERVER_ERROR.value)


def _path(request: Any) -> str:
    return str(request.url.path.removeprefix(request.scope.get("root_path", "")))
