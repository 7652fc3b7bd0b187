"""The API key from a browser, which cannot send it as other clients do: it asks its user, and sends it as a password.

Only on the page's own routes, and only to the page itself: a browser sends what it was told to whoever's page asks.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ASK = (b"www-authenticate", b'Basic realm="The API key of this server, as the password", charset="UTF-8"')


class BrowserKey:
    """ASGI middleware around all others: turns a password into the bearer token that SGLang looks for."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or not self._is_ours(scope):
            return await self.app(scope, receive, send)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401 and scope["method"] == "GET":
                message = {**message, "headers": [*message.get("headers", []), _ASK]}
            await send(message)

        return await self.app({**scope, "headers": _with_token(scope["headers"])}, receive, told)

    def _is_ours(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return bool(path == self.path or path.startswith(self.path + "/"))


def _with_token(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    given = {name.lower(): value for name, value in headers}
    kind, _, coded = given.get(b"authorization", b"").partition(b" ")
    if kind.lower() != b"basic" or not _from_itself(given):
        return headers
    try:
        password = base64.b64decode(coded, validate=True).partition(b":")[2]
    except binascii.Error:
        return headers
    kept = [(name, value) for name, value in headers if name.lower() != b"authorization"]
    return [*kept, (b"authorization", b"Bearer " + password)]


def _from_itself(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says that this server's own page asks, or its user."""
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return False
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin).netloc == headers.get(b"host")


def install_browser_key(app: Any, path: str) -> None:
    """Put it around an app's other middleware, those added later included; once."""
    if getattr(app, "leankv_browser_key", False):
        return
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: BrowserKey(build(), path)
    app.leankv_browser_key = True
