"""The request field ``leankv`` at the HTTP front: checked, taken out of the body, and put into ``cache_salt``."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

import orjson

from leankv_sglang.compression.request_params import FIELD, resolve, salted
from leankv_sglang.config import LeanKVConfig, required_config
from leankv_sglang.errors import LeanKVError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_NATIVE, _OPENAI, _NOWHERE = "native", "openai", "nowhere"
ROUTES = {
    "/generate": _NATIVE,
    "/v1/completions": _OPENAI,
    "/v1/chat/completions": _OPENAI,
    "/invocations": _OPENAI,
    # These would drop the field without a word.
    "/v1/responses": _NOWHERE,
    "/v1/messages": _NOWHERE,
    "/vertex_generate": _NOWHERE,
    "/api/chat": _NOWHERE,
    "/api/generate": _NOWHERE,
}
"""Every route that generates: how it reports errors, and whether the field reaches anything there."""
TAKING = [path for path, form in ROUTES.items() if form != _NOWHERE]
"""The routes that take the field."""
# The field's name as JSON may spell it: plain, or with a letter escaped.
_WORDS = (FIELD.encode(), b"\\u006", b"\\u007")


class RequestFieldMiddleware:
    """ASGI middleware that applies the field. It reads bodies of :data:`ROUTES` only, and parses those that name it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        form = _form(scope)
        if form is None:
            return await self.app(scope, receive, send)
        body = await _read(receive)
        if body is None:
            return await self.app(scope, _replay({"type": "http.disconnect"}, receive), send)
        try:
            changed = apply_field(body, required_config(), takes=form != _NOWHERE)
        except LeanKVError as error:
            return await _refuse(str(error), form, send)
        if changed is not body:
            scope = {**scope, "headers": _with_length(scope["headers"], len(changed))}
        message = {"type": "http.request", "body": changed, "more_body": False}
        return await self.app(scope, _replay(message, receive), send)


def apply_field(body: bytes, config: LeanKVConfig, takes: bool = True) -> bytes:
    """A request body with its accuracy in ``cache_salt``; the body itself where there is nothing to change.

    Args:
        body: JSON, or anything else, which SGLang will judge.
        config: the server's.
        takes: whether the route takes the field at all.

    Raises:
        LeanKVError: one sentence saying what is wrong with the field.
    """
    if not any(word in body for word in _WORDS):
        return body
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(fields, dict):
        return body
    named, field, salt = FIELD in fields, fields.pop(FIELD, None), fields.get("cache_salt")
    if not takes:
        if field is not None:
            raise LeanKVError(f"{FIELD} is not taken here; {', '.join(TAKING[:-1])} and {TAKING[-1]} take it.")
        return body
    new_salt = salted(resolve(field, config), salt)
    if not named and new_salt == salt:
        return body
    if new_salt is not None:
        fields["cache_salt"] = new_salt
    return orjson.dumps(fields)


def _form(scope: Message) -> str | None:
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
        return None
    return ROUTES.get(scope["path"].removeprefix(scope.get("root_path", "")))


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None where the client left before its end."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(message: Message, receive: Receive) -> Receive:
    """A channel that gives ``message`` first and goes on with ``receive``."""
    pending = [message]

    async def channel() -> Message:
        return pending.pop() if pending else await receive()

    return channel


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]


def error_body(sentence: str, form: str) -> dict[str, Any]:
    """An error as SGLang's own look on routes of a form."""
    if form != _OPENAI:
        return {"error": {"message": sentence}}
    code = HTTPStatus.BAD_REQUEST.value
    return {"object": "error", "message": sentence, "type": "BadRequestError", "param": FIELD, "code": code}


async def _refuse(sentence: str, form: str, send: Send) -> None:
    body = json.dumps(error_body(sentence, form)).encode()
    headers = _with_length([(b"content-type", b"application/json")], len(body))
    await send({"type": "http.response.start", "status": HTTPStatus.BAD_REQUEST.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})
