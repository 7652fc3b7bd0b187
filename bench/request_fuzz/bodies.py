"""Hypothesis strategies of request bodies: a good request of a route with some fields replaced.

Values follow the types that SGLang's request classes state, extremes included, or pay no heed to them.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from hypothesis import strategies as st
from pydantic import BaseModel

SERVED_NAME = "default"
PROMPT = [5, 9, 2, 11, 7, 30, 21, 8]
_ASK = {"max_tokens": 3, "temperature": 0}
_MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 3, "temperature": 0}},
    "/v1/completions": {"model": SERVED_NAME, "prompt": "Hello", **_ASK},
    "/v1/chat/completions": {"model": SERVED_NAME, "messages": _MESSAGES, **_ASK},
    "/invocations": {"model": SERVED_NAME, "messages": _MESSAGES, **_ASK},
    "/v1/responses": {"model": SERVED_NAME, "input": "Hello", "max_output_tokens": 3, "temperature": 0},
    "/v1/messages": {"model": SERVED_NAME, "messages": _MESSAGES, **_ASK},
    "/v1/score": {"model": SERVED_NAME, "query": PROMPT, "items": [PROMPT, PROMPT], "label_token_ids": [1, 2]},
    "/api/chat": {"model": SERVED_NAME, "messages": _MESSAGES, "stream": False, "options": {"num_predict": 3}},
    "/api/generate": {"model": SERVED_NAME, "prompt": "Hello", "stream": False, "options": {"num_predict": 3}},
    "/vertex_generate": {
        "instances": [{"input_ids": PROMPT}],
        "parameters": {"sampling_params": {"max_new_tokens": 3, "temperature": 0}},
    },
    "/v1/embeddings": {"model": SERVED_NAME, "input": "Hello"},
    "/classify": {"input_ids": PROMPT},
    "/v1/tokenize": {"model": SERVED_NAME, "prompt": "Hello"},
    "/v1/detokenize": {"model": SERVED_NAME, "tokens": PROMPT},
}
"""Routes that take a client's request, each with one that it answers."""
FREE = {"leankv", "cache_salt", "rid", "n", "stop_regex", "regex", "ebnf", "json_schema", "logit_bias"}
"""Fields tried on every route, stated or not."""

_NUMBERS = [0, 1, -1, 2, 3, 7, 255, 10**6, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30]
_FLOATS = [0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e-300, 1e38, 1e308, -1e308, float("nan"), float("inf"), float("-inf")]
_TEXTS = ["", "a", "Hello", "\x00", "\ud800", "é" * 50, "x" * 20000, "HEALTH_CHECK_1", "leankv:small;", "-1", "{", "[["]
_GRAMMARS = ["(a+)+$", "a{1000}", "(" * 300 + ")" * 300, "[", '{"type": "object"}', '{"type": 7}', 'root ::= "a"', "\\"]
_EDGES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, [], {}, [[]], [None], {"": None}, [0] * 1000, {"type": "object"}]
)


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


integers = st.sampled_from(_NUMBERS) | st.integers(-5, 60000)
floats = st.sampled_from(_FLOATS) | st.floats(-3, 3)
texts = st.sampled_from(_TEXTS + _GRAMMARS) | st.text(max_size=8)
anything: st.SearchStrategy[Any] = st.recursive(
    integers | floats | texts | _EDGES | st.sampled_from([50, 300]).map(_nested),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
"""Values that pay no heed to any type."""


def of_type(kind: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a type allows, as JSON has them; anything where the type says nothing or goes too deep."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is None or kind is type(None):
        return st.none()
    if origin is Literal:
        return st.sampled_from(list(inner))
    if origin in (Union, types.UnionType):
        return st.one_of([of_type(one, depth) for one in inner])
    if origin is typing.Annotated:
        return of_type(inner[0], depth)
    if depth > 3:
        return anything
    if origin in (list, set, tuple, Sequence):
        return st.lists(of_type(inner[0] if inner else Any, depth + 1), max_size=4)
    if origin is dict:
        return st.dictionaries(texts | integers.map(str), of_type(inner[1] if inner else Any, depth + 1), max_size=3)
    for plain, strategy in ((bool, st.booleans()), (int, integers), (float, floats), (str, texts)):
        if kind is plain:
            return strategy
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from([one.value for one in kind])
    fields = fields_of(kind)
    if fields:
        some = {name: _later(t, depth + 1) for name, t in fields.items()}
        return st.fixed_dictionaries({}, optional=some)
    return anything


def _later(kind: Any, depth: int) -> st.SearchStrategy[Any]:
    """The same, looked at when it is needed: types may hold themselves."""
    return st.deferred(lambda: of_type(kind, depth))


def fields_of(kind: Any) -> dict[str, Any]:
    """Names and types of the fields of a pydantic model, a dataclass or a msgspec structure; none of anything else."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {field.name: field.type for field in msgspec.structs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        return dict(typing.get_type_hints(kind, include_extras=False))
    return {}


def schemas() -> dict[str, dict[str, Any]]:
    """What the request class of each route states: names of fields with their types."""
    from sglang.srt.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from sglang.srt.entrypoints.ollama.protocol import OllamaChatRequest, OllamaGenerateRequest
    from sglang.srt.entrypoints.openai import protocol
    from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput

    classes = {
        "/generate": GenerateReqInput,
        "/v1/completions": protocol.CompletionRequest,
        "/v1/chat/completions": protocol.ChatCompletionRequest,
        "/invocations": protocol.ChatCompletionRequest,
        "/v1/responses": protocol.ResponsesRequest,
        "/v1/messages": AnthropicMessagesRequest,
        "/v1/score": protocol.ScoringRequest,
        "/api/chat": OllamaChatRequest,
        "/api/generate": OllamaGenerateRequest,
        "/v1/embeddings": protocol.EmbeddingRequest,
        "/classify": EmbeddingReqInput,
        "/v1/tokenize": protocol.TokenizeRequest,
        "/v1/detokenize": protocol.DetokenizeRequest,
    }
    found = {route: fields_of(kind) for route, kind in classes.items()}
    found["/vertex_generate"] = found["/generate"]
    return found


def requests_of(routes: Sequence[str]) -> st.SearchStrategy[tuple[str, Any]]:
    """Routes with bodies: a good one with one to three fields replaced, now and then no object at all."""
    from sglang.srt.sampling.sampling_params import SamplingParams

    stated, sampling = schemas(), fields_of(SamplingParams)

    def replaced(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        names = sorted({*fields, *FREE})
        one = st.sampled_from(names).flatmap(
            lambda name: st.tuples(st.just(name), (of_type(fields[name]) if name in fields else anything) | anything)
        )
        return st.lists(one, min_size=1, max_size=3).map(dict)

    def body(route: str) -> st.SearchStrategy[Any]:
        good, where = BODIES[route], "parameters" if route == "/vertex_generate" else None
        outer = replaced(stated[route])
        if "sampling_params" in stated[route]:
            base = {"max_new_tokens": 3, "temperature": 0}
            inner = replaced(sampling).map(lambda some: {"sampling_params": {**base, **some}})
            outer = outer | inner | st.tuples(outer, inner).map(lambda both: {**both[0], **both[1]})
        if where:
            return outer.map(lambda some: {**good, where: {**good[where], **some}}) | st.builds(
                lambda some: {**good, "instances": [some]}, outer
            )
        return outer.map(lambda some: {**good, **some})

    often = [route for route in routes if route in ("/generate", "/v1/completions", "/v1/chat/completions")]
    return st.sampled_from([*routes, *often, *often]).flatmap(
        lambda route: st.tuples(st.just(route), st.integers(0, 39).flatmap(lambda k: body(route) if k else anything))
    )
