"""The page's routes in SGLang's HTTP app, behind its API key like all others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sse_starlette.sse import EventSourceResponse

from leankv_sglang.config import required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.observability.live.page.page import Chosen, Page, text_maker
from leankv_sglang.observability.live.page.probe_request import read_prompt
from leankv_sglang.observability.live.page.probe_words import sentence
from leankv_sglang.observability.live.page.watch import watch_of

PATH = "/leankv"
FIRST_SECONDS = 0.35
"""How long a page waits for what it shows first; the rest of it comes by events."""
_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LARGEST = 10**6

_pages: WeakKeyDictionary[Any, Page] = WeakKeyDictionary()


def _manager() -> Any:
    from sglang.srt.entrypoints import http_server

    manager = http_server._global_state.tokenizer_manager
    manager.auto_create_handle_loop()
    return manager


def _page(manager: Any) -> Page:
    if manager not in _pages:
        from sglang.srt.runtime_context import get_parallel, get_serving

        config = required_config()
        decode = text_maker(manager.tokenizer) if config.show_text else None
        name = Path(get_serving().served_model_name).name
        _pages[manager] = Page(watch_of(manager), config, name, decode, get_parallel().tp_size)
    return _pages[manager]


def _chosen(request: Request, ranks: int) -> Chosen:
    def number(name: str, most: int) -> int:
        given = request.query_params.get(name, "")
        return min(int(given), most) if given.isdecimal() and len(given) < 8 else 0

    return number("rank", ranks - 1), number("layer", _LARGEST), number("head", _LARGEST)


async def show_page(request: Request) -> Response:
    """What the cache holds, as a page that keeps itself up to date."""
    manager = _manager()
    watch = watch_of(manager)
    await watch.fresh(FIRST_SECONDS)
    html = await _page(manager).document(_chosen(request, watch.ranks))
    return HTMLResponse(html, headers=_HEADERS)


async def send_events(request: Request) -> Response:
    """The page's sections whenever they change, as server-sent events."""
    manager = _manager()
    watch = watch_of(manager)
    page, chosen = _page(manager), _chosen(request, watch.ranks)

    async def events() -> AsyncIterator[dict[str, str]]:
        sent: dict[str, str] = {}
        async with watch.viewer():
            while not manager.gracefully_exit:
                sections = await page.sections(chosen)
                if changed := {name: html for name, html in sections.items() if sent.get(name) != html}:
                    yield {"event": "sections", "data": json.dumps(changed)}
                sent = sections
                await asyncio.sleep(1.0)

    return EventSourceResponse(events(), headers={"Cache-Control": "no-store"})


async def probe(request: Request) -> Response:
    """What a prompt would hit, where that ends and why; nothing is locked, and nothing counts as used."""
    manager = _manager()
    try:
        try:
            body = await request.json()
        except (ValueError, RecursionError):
            raise LeanKVError("The body of a probe is no JSON; it is an object in UTF-8.") from None
        chat = request.app.state.openai_serving_chat
        prompt = await read_prompt(body, required_config(), manager, chat)
    except LeanKVError as error:
        return JSONResponse({"error": {"message": str(error)}}, HTTPStatus.BAD_REQUEST)
    try:
        found = await watch_of(manager).probe(prompt.tokens.tobytes(), prompt.extra_key, prompt.cache_salt)
    except TimeoutError:
        said = "The scheduler does not answer; it may be in a long step, or paused."
        return JSONResponse({"error": {"message": said}}, HTTPStatus.SERVICE_UNAVAILABLE)
    if failed := next((one["error"] for one in found if "error" in one), None):
        return JSONResponse({"error": {"message": failed}}, HTTPStatus.CONFLICT)
    found = [{**one, "rank": rank, "sentence": sentence(one)} for rank, one in enumerate(found)]
    best = max(found, key=lambda one: one["hit_tokens"])
    return JSONResponse(best | {"ranks": found} if len(found) > 1 else best)


def _file(name: str, kind: str) -> Callable[[], Any]:
    text = (Path(__file__).parent / "static" / name).read_text()

    async def send() -> Response:
        return Response(text, media_type=kind, headers={**_HEADERS, "Cache-Control": "max-age=3600"})

    return send


def install_routes(app: Any) -> None:
    """Add the page's routes to SGLang's app; once."""
    if any(getattr(route, "path", None) == PATH for route in app.routes):
        return
    app.add_api_route(PATH, show_page, methods=["GET"], include_in_schema=False)
    app.add_api_route(f"{PATH}/events", send_events, methods=["GET"], include_in_schema=False)
    app.add_api_route(f"{PATH}/probe", probe, methods=["POST"], response_model=None)
    for name, kind in _STATIC.items():
        app.add_api_route(f"{PATH}/{name}", _file(name, kind), methods=["GET"], include_in_schema=False)
