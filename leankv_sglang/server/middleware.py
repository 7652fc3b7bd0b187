"""The request field ``leankv`` at the HTTP front: checked, taken out of the body, and put into ``cache_salt``."""

from __future__ import annotations

import json
import os
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leankv_sglang.compression.request_params import FIELD, resolve, salted
from leankv_sglang.config import LeanKVConfig, required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.server.vertex import check_parameters

_NATIVE, _OPENAI, _NOWHERE, _VERTEX = "native", "openai", "nowhere", "vertex"
ROUTES = {
    "/generate": _NATIVE,
    "/v1/completions": _OPENAI,
    "/v1/chat/completions": _OPENAI,
    "/invocations": _OPENAI,
    # These would drop the field without a word.
    "/v1/responses": _NOWHERE,
    "/v1/messages": _NOWHERE,
    "/v1/score": _NOWHERE,
    "/v1/decisions": _NOWHERE,
    "/v1/systemone": _NOWHERE,
    # SGLang's request of an embedding has no salt, so no accuracy would reach the radix key.
    "/encode": _NOWHERE,
    "/classify": _NOWHERE,
    "/v1/embeddings": _NOWHERE,
    "/v1/classify": _NOWHERE,
    "/v1/rerank": _NOWHERE,
    os.environ.get("SGLANG_OLLAMA_CHAT_ROUTE", "/api/chat"): _NOWHERE,
    os.environ.get("SGLANG_OLLAMA_GENERATE_ROUTE", "/api/generate"): _NOWHERE,
    os.environ.get("AIP_PREDICT_ROUTE", "/vertex_generate"): _VERTEX,
}
"""Every route with prompts: how it reports errors, and whether the field reaches anything there."""
TAKING = [path for path, form in ROUTES.items() if form in (_NATIVE, _OPENAI)]
"""The routes that take the field."""
# The field's name as JSON may spell it: plain, or with a letter escaped; a zero is a letter in UTF-16 and UTF-32.
_HEALTH = "HEALTH_CHECK"
_WORDS = (FIELD.encode(), _HEALTH.encode(), b"\\u006", b"\\u007", b"\0")


# How JSON begins that is no object; in two or four bytes a character it begins otherwise.
_OTHER_JSON = b'[0123456789-"tfnNI'

_NOT_HERE = f"{FIELD} is not taken here; {', '.join(TAKING[:-1])} and {TAKING[-1]} take it."


class RequestFieldMiddleware:
    """ASGI middleware that applies the field. It reads bodies of :data:`ROUTES` only, and parses those that name it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        form = _form(scope)
        if form is None:
            return await self.app(scope, receive, send)
        body = await _read(receive)
        if body is None:
            return await self.app(scope, _replay({"type": "http.disconnect"}, receive), send)
        try:
            changed = apply_field(body, required_config(), form)
        except LeanKVError as error:
            return await _refuse(str(error), form, send)
        if changed is not body:
            scope = {**scope, "headers": _with_length(scope["headers"], len(changed))}
        message = {"type": "http.request", "body": changed, "more_body": False}
        return await self.app(scope, _replay(message, receive), send)


def apply_field(body: bytes, config: LeanKVConfig, form: str = _NATIVE) -> bytes:
    """A request body with its accuracy in ``cache_salt``; the body itself where there is nothing to change.

    Args:
        body: JSON, or anything else, which SGLang will judge.
        config: the server's.
        form: of the route, from :data:`ROUTES`.

    Raises:
        LeanKVError: one sentence saying what is wrong with the field.
    """
    if (first := body.lstrip()[:1]) in _OTHER_JSON and first:
        raise LeanKVError("The body of a request is a JSON object here.")
    if form != _VERTEX and not any(word in body for word in _WORDS):
        return body
    try:
        # The parser that comes after this: the field would be lost with what another one refuses, as NaN.
        fields = json.loads(body)
        if not isinstance(fields, dict):
            return body
        _check_rid(fields.get("rid"))
        changed = _changed(fields, config, form)
        return json.dumps(fields).encode() if changed else body
    except RecursionError:
        raise LeanKVError(f"This request nests too deeply for {FIELD} to be found in it.") from None
    except ValueError:
        return body


def _check_rid(rid: Any) -> None:
    """Requests with such an id are the server's own, which it leaves unanswered while it is busy."""
    if any(isinstance(one, str) and one.startswith(_HEALTH) for one in (rid if isinstance(rid, list) else [rid])):
        raise LeanKVError(f"rid may not begin with {_HEALTH}.")


def _changed(fields: dict[str, Any], config: LeanKVConfig, form: str) -> bool:
    """Apply the field of a body to it; whether that changed it."""
    if form == _VERTEX:
        return _vertex(fields, config)
    named, field, salt = FIELD in fields, fields.pop(FIELD, None), fields.get("cache_salt")
    if form == _NOWHERE:
        if field is not None:
            raise LeanKVError(_NOT_HERE)
        new_salt = salted(resolve(None, config), salt)
    else:
        new_salt = salted(resolve(field, config), salt)
    if new_salt is not None:
        fields["cache_salt"] = new_salt
    return named or new_salt != salt


def _vertex(body: dict[str, Any], config: LeanKVConfig) -> bool:
    """What is generated with are the fields of ``parameters``."""
    parameters, instances = body.get("parameters"), body.get("instances")
    if isinstance(parameters, dict):
        check_parameters({name: value for name, value in parameters.items() if name != FIELD})
    inner = [parameters, *(instances if isinstance(instances, list) else [])]
    if any(isinstance(one, dict) and one.get(FIELD) is not None for one in [body, *inner]):
        raise LeanKVError(_NOT_HERE)
    # All of them, not as far as the first that changes.
    changes = [_changed(one, config, _NOWHERE) for one in [body, *inner] if isinstance(one, dict)]
    return any(changes)


def _form(scope: Scope) -> str | None:
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


def native_errors(path: str) -> bool:
    """Whether a route reports errors as ``/generate`` does, not as OpenAI's routes."""
    return not path.startswith("/v1/") and path not in ("/invocations", "/tokenize", "/detokenize")


def error_body(sentence: str, form: str = _NATIVE) -> dict[str, Any]:
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
