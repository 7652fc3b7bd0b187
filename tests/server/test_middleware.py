"""The field at the HTTP front: what the middleware changes, refuses, and leaves as it came."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.server import middleware
from leankv_sglang.server.middleware import ROUTES, TAKING, RequestFieldMiddleware

SMALL = {"profile": "small"}
SALT = "leankv:small;"


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's configuration, as the launcher leaves it."""
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig().to_json())


class Behind:
    """Stands for SGLang's app: keeps what reached it, answers 200."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.messages: list[Any] = []
        self.scope: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        more = True
        while more:
            message = await receive()
            self.messages.append(message)
            more = message.get("more_body", False)
        self.bodies.append(b"".join(m.get("body", b"") for m in self.messages))
        # What SGLang does to notice a client that has gone.
        self.messages.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def call(
    path: str, parts: Sequence[bytes], method: str = "POST", leaves: bool = False, root: str = ""
) -> tuple[int, Any, Behind]:
    """Status, decoded answer and the app behind, for a body that comes in parts."""
    behind, sent = Behind(), []
    incoming = [{"type": "http.request", "body": p, "more_body": i + 1 < len(parts)} for i, p in enumerate(parts)]
    if leaves:
        incoming[-1]["more_body"] = True
    incoming.append({"type": "http.disconnect"})

    async def receive() -> Any:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    length = str(sum(map(len, parts))).encode()
    scope = {
        "type": "http",
        "method": method,
        "path": root + path,
        "root_path": root,
        "headers": [(b"Content-Length", length), (b"x", b"y")],
    }
    asyncio.run(RequestFieldMiddleware(behind)(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in sent)
    return sent[0]["status"], json.loads(body) if body else None, behind


def reaches(path: str, body: Any, **how: Any) -> Any:
    """What SGLang gets of a body that is accepted."""
    status, _, behind = call(path, [json.dumps(body).encode()], **how)
    assert status == 200
    (got,) = behind.bodies
    assert dict(behind.scope["headers"]).get(b"content-length", str(len(got)).encode()) == str(len(got)).encode()
    return json.loads(got)


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"text": "a", "sampling_params": {"n": 2, "custom_params": {"mine": 1}}, "stream": True}),
    ("/generate", {"text": ["a", "b"], "extra_key": ["x", "y"]}),
    ("/generate", {"input_ids": [1, 2, 3], "rid": "leankv"}),
    ("/v1/completions", {"model": "m", "prompt": ["a", "b"], "n": 2, "custom_params": {"mine": 1}}),
    ("/v1/completions", {"model": "m", "prompt": [[1], [2]], "stream": True}),
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "ünï\u2028 \U0001f600"}]}),
    ("/invocations", {"messages": []}),
]


@pytest.mark.parametrize(("path", "body"), BODIES, ids=lambda x: str(x)[:40])
def test_the_field_becomes_a_salt_and_nothing_else_changes(path: str, body: dict[str, Any]) -> None:
    assert reaches(path, body) == body
    assert reaches(path, {**body, "leankv": SMALL}) == {**body, "cache_salt": SALT}
    assert reaches(path, {**body, "leankv": SMALL, "cache_salt": "me"}) == {**body, "cache_salt": SALT + "me"}
    assert reaches(path, {**body, "leankv": None}) == body
    assert reaches(path, {**body, "leankv": {"profile": "balanced"}}) == body
    thresholds = reaches(path, {**body, "leankv": {"alpha_high": 2, "alpha_low": 0.5}})
    assert thresholds == {**body, "cache_salt": "leankv:2.0,inf,0.5;"}


def test_one_salt_per_prompt() -> None:
    body = {"text": ["a", "b"], "cache_salt": ["x", "y"], "leankv": SMALL}
    assert reaches("/generate", body)["cache_salt"] == [SALT + "x", SALT + "y"]


def test_a_client_cannot_pass_for_another_accuracy() -> None:
    body = {"text": "a", "cache_salt": "leankv:near-lossless;x"}
    assert reaches("/generate", body) == {**body, "cache_salt": "leankv:;leankv:near-lossless;x"}


def test_an_escaped_name_is_the_name() -> None:
    status, _, behind = call("/generate", [rb'{"text": "a", "\u006ceank\u0076": {"profile": "small"}}'])
    assert status == 200
    assert json.loads(behind.bodies[0]) == {"text": "a", "cache_salt": SALT}


def test_put_and_a_root_path() -> None:
    assert reaches("/generate", {"text": "a", "leankv": SMALL}, method="PUT")["cache_salt"] == SALT
    assert reaches("/generate", {"text": "a", "leankv": SMALL}, root="/api")["cache_salt"] == SALT


@pytest.mark.parametrize("path", TAKING)
def test_a_bad_field_is_a_400_before_anything_is_scheduled(path: str) -> None:
    status, answer, behind = call(path, [json.dumps({"text": "a", "leankv": {"profile": "tiny"}}).encode()])
    assert status == 400
    assert behind.bodies == []
    message = answer["error"]["message"] if path == "/generate" else answer["message"]
    assert message == "leankv.profile takes near-lossless, balanced, small, not 'tiny'."
    if path != "/generate":
        assert (answer["object"], answer["type"], answer["code"]) == ("error", "BadRequestError", 400)


@pytest.mark.parametrize("path", sorted(set(ROUTES) - set(TAKING)))
def test_where_it_would_be_lost_it_is_refused(path: str) -> None:
    status, answer, behind = call(path, [json.dumps({"leankv": SMALL}).encode()])
    assert (status, behind.bodies) == (400, [])
    assert "leankv is not taken here; /generate, /v1/completions" in answer["error"]["message"]
    body = {"messages": "leankv", "cache_salt": "me"}
    assert reaches(path, body) == body
    # Some of them hand a salt on.
    assert reaches(path, {**body, "cache_salt": "leankv:x"}) == {**body, "cache_salt": "leankv:;leankv:x"}


@pytest.mark.parametrize("where", ["parameters", "instances"])
def test_vertex_has_its_fields_further_in(where: str) -> None:
    def body(fields: dict[str, Any]) -> dict[str, Any]:
        good = {"instances": [{"text": "a"}], "parameters": {}}
        return {**good, where: fields if where == "parameters" else [{"text": "b"}, fields]}

    status, answer, behind = call("/vertex_generate", [json.dumps(body({"leankv": SMALL})).encode()])
    assert (status, behind.bodies) == (400, [])
    assert "leankv is not taken here" in answer["error"]["message"]
    assert reaches("/vertex_generate", body({"leankv": None, "rid": "a"})) == body({"rid": "a"})
    assert reaches("/vertex_generate", body({"cache_salt": "leankv:small;"})) == body(
        {"cache_salt": "leankv:;leankv:small;"}
    )


def test_every_salt_of_a_vertex_body_is_escaped() -> None:
    """One that a client puts outside does not let the ones inside through."""
    salt = {"cache_salt": "leankv:small;"}
    got = reaches("/vertex_generate", {**salt, "instances": [{"text": "a"}, salt], "parameters": salt})
    for escaped in (got, got["parameters"], got["instances"][1]):
        assert escaped["cache_salt"] == "leankv:;leankv:small;"


def test_neighbours_of_the_field_may_be_anything() -> None:
    nested: Any = 0
    for _ in range(300):
        nested = [nested]
    for value in (nested, math.inf, 10**30, "\ud800"):
        assert reaches("/generate", {"text": "a", "x": value, "leankv": SMALL})["x"] == value
    sent = json.dumps({"text": "a", "x": math.nan, "leankv": SMALL}).encode("utf-16")
    _, _, behind = call("/generate", [sent])
    assert json.loads(behind.bodies[0])["cache_salt"] == SALT


@pytest.mark.parametrize("depth", [300, 980, 5000])
@pytest.mark.parametrize("path", ["/generate", "/v1/score", "/vertex_generate"])
def test_a_field_that_nests_deeply_is_refused(path: str, depth: int) -> None:
    status, _, behind = call(path, [b'{"leankv": ' + b"[" * depth + b"]" * depth + b"}"])
    assert (status, behind.bodies) == (400, [])


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"{",
            b'{"leankv": {"profile": "tiny"}',
            b"leankv",
            b"\xff leankv",
            b"\0\0\0",
        ),
    ],
)
def test_what_is_no_json_object_is_left_to_sglang(body: bytes) -> None:
    status, _, behind = call("/generate", [body])
    assert (status, behind.bodies) == (200, [body])


@pytest.mark.parametrize("body", [b' ["leankv"]', b'"a"', b"5", b"-1", b"null", b"true", b"NaN"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    status, answer, behind = call("/v1/chat/completions", [body])
    assert (status, answer["message"], behind.bodies) == (400, "The body of a request is a JSON object here.", [])


def test_ids_of_the_servers_own_requests_are_refused() -> None:
    for rid in ("HEALTH_CHECK_1", ["a", "HEALTH_CHECK"]):
        status, answer, behind = call("/generate", [json.dumps({"text": "a", "rid": rid}).encode()])
        assert (status, behind.bodies) == (400, [])
        assert answer["error"]["message"] == "rid may not begin with HEALTH_CHECK."
    body = {"text": "HEALTH_CHECK", "rid": "my HEALTH_CHECK"}
    assert reaches("/generate", body) == body


def test_vertex_parameters_that_are_no_fields_are_refused() -> None:
    body = {"instances": [{"text": "a"}], "parameters": {"regex": "a"}}
    status, answer, _ = call("/vertex_generate", [json.dumps(body).encode()])
    assert status == 400
    assert "fields of /generate but the prompt, which 'regex' is not" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("data_parallel_rank", {"a": {}}, "parameters.data_parallel_rank takes an integer"),
        ("routed_dp_rank", "1", "parameters.routed_dp_rank takes an integer"),
        ("bootstrap_port", {}, "parameters.bootstrap_port takes"),
        ("priority", [1.5], "parameters.priority takes an integer"),
        ("stream", "no", "parameters.stream takes"),
        ("rid", {}, "parameters.rid takes"),
    ],
)
def test_vertex_parameters_have_the_types_of_generate(name: str, value: Any, said: str) -> None:
    body = {"instances": [{"text": "a"}], "parameters": {name: value}}
    status, answer, behind = call("/vertex_generate", [json.dumps(body).encode()])
    assert (status, behind.bodies) == (400, [])
    assert said in answer["error"]["message"]


def test_vertex_parameters_of_the_right_types_pass() -> None:
    parameters = {"sampling_params": {"n": 2}, "stream": True, "rid": ["a", "b"], "priority": 3, "custom_labels": None}
    body = {"instances": [{"text": "a"}], "parameters": parameters}
    assert reaches("/vertex_generate", body) == body


def test_bodies_are_parsed_only_where_the_word_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(middleware.json, "loads", fail)
    huge = b'{"text": "' + b"lean kv " * 4_000_000 + b'"}'
    half = len(huge) // 2
    for path in ("/generate", "/v1/chat/completions"):
        _, _, behind = call(path, [huge[:half], huge[half:]])
        assert behind.bodies == [huge]
    # Other routes are not even read.
    body = b'{"leankv": 1}'
    for path, method in (("/tokenize", "POST"), ("/flush_cache", "POST"), ("/generate", "GET")):
        status, _, behind = call(path, [body[:5], body[5:]], method=method)
        assert status == 200
        assert [m.get("body") for m in behind.messages] == [body[:5], body[5:], None]


def test_a_huge_body_in_many_parts() -> None:
    body = json.dumps({"text": "x" * 20_000_000, "leankv": SMALL}).encode()
    parts = [body[i : i + 65536] for i in range(0, len(body), 65536)]
    status, _, behind = call("/generate", parts)
    assert status == 200
    assert json.loads(behind.bodies[0])["cache_salt"] == SALT


def test_a_client_that_leaves_is_reported_as_gone() -> None:
    _, _, behind = call("/generate", [b'{"text": "a', b'", "leankv": '], leaves=True)
    assert behind.messages[0] == {"type": "http.disconnect"}
    # And after a whole body, the app still hears of it.
    _, _, behind = call("/generate", [b'{"text": "a", "leankv": {"profile": "small"}}'])
    assert behind.messages[-1] == {"type": "http.disconnect"}


def test_websockets_pass() -> None:
    seen = []

    async def behind(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(RequestFieldMiddleware(behind)({"type": "websocket", "path": "/generate"}, None, None))  # type: ignore[arg-type]
    assert seen == ["websocket"]
