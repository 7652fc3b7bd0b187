"""What a route cannot read is refused with one sentence, in the form that the route has for errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from leankv_patches.schema_words import schema_sentence
from leankv_sglang.server.refusals import install_refusals


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """SGLang's app, whose bodies are read though no server is behind it."""
    from fastapi.testclient import TestClient
    from sglang.srt.entrypoints.http_server import app

    @asynccontextmanager
    async def nothing(app: Any) -> Any:
        yield

    handlers, lifespan, stack = dict(app.exception_handlers), app.router.lifespan_context, app.middleware_stack
    install_refusals(app)
    app.router.lifespan_context, app.middleware_stack = nothing, None
    yield TestClient(app, raise_server_exceptions=False)
    app.exception_handlers, app.router.lifespan_context, app.middleware_stack = handlers, lifespan, stack


CHAT = "/v1/chat/completions"
BAD: list[tuple[str, Any, str]] = [
    ("/generate", {"input_ids": [1.5, 2]}, "input_ids does not fit: elements must be int or list; got float."),
    ("/generate", {"text": 5}, "text takes a string or a list."),
    ("/generate", {"text": "a", "stream": "x", "rid": 5}, "stream takes a boolean; rid takes a string or a list."),
    ("/generate", b"{bad", "The body is not JSON: unexpected character, expected a string key."),
    ("/generate", b"", "The body is missing."),
    ("/encode", {"text": 5}, "text takes a list or a string."),
    ("/open_session", {}, "capacity_of_str_len is missing."),
    ("/open_session", {"capacity_of_str_len": "x"}, "capacity_of_str_len takes an integer."),
    ("/api/chat", {"model": 5}, "model takes a string; messages is missing."),
    (CHAT, {"model": "a"}, "messages is missing."),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content takes a string or a list."),
    (
        CHAT,
        {"messages": "x", "temperature": "hot", "n": "many"},
        "messages takes a list; n takes an integer.",
    ),
    (CHAT, {"messages": [], "response_format": [5]}, "'list' object has no attribute 'get'."),
    ("/v1/completions", {"prompt": [1.5]}, "prompt[0] takes an integer or a list or a string."),
    ("/tokenize", {"prompt": 5}, "prompt takes a list or a string."),
    ("/invocations", {"messages": 5}, "messages takes a list."),
    ("/v1/responses", {"model": "a", "input": 5}, "input takes a string or a list."),
    ("/v1/messages", {"a": 1}, "model is missing; messages is missing."),
]


@pytest.mark.parametrize(("route", "body", "said"), BAD, ids=[f"{route} {said}" for route, _, said in BAD])
def test_a_body_that_does_not_fit_is_told_in_a_sentence(client: Any, route: str, body: Any, said: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(route, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    told = answer.json()
    if route in ("/v1/responses", "/v1/messages") or not (route.startswith("/v1/") or "message" in told):
        told = told["error"]
    else:
        assert (told["object"], told["code"]) == ("error", 400)
    assert told["message"] == said or told["message"].endswith(": " + said)
    assert not any(word in answer.text for word in ("site-packages", ".py", "pydantic", "\\n"))


def test_a_route_that_documents_its_errors_keeps_them(client: Any) -> None:
    answer = client.post("/v1/systemone", json={})
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([], "The request cannot be read."),
        ([{"type": "extra_forbidden", "loc": ("body", "a"), "msg": "Extra inputs"}], "a is not known here."),
        (
            [{"type": "literal_error", "loc": ("body", "a"), "msg": "Input should be 'x', 'y' or 'z'"}],
            "a takes 'x', 'y' or 'z'.",
        ),
        (
            [{"type": "value_error", "loc": ("body", "m" * 500), "msg": "Value error, " + "long " * 200}],
            "m" * 150 + "[...] does not fit: " + ("long " * 30) + "[...].",
        ),
    ],
)
def test_sentences(errors: list[dict[str, Any]], said: str) -> None:
    assert schema_sentence(errors) == said
