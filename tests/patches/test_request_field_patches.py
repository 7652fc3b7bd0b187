"""The hooks of the per-request accuracy: each takes on the pinned sglang, and says so when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.exceptions import RequestValidationError
from sglang.srt.plugins.hook_registry import HookRegistry

from leankv_patches import (
    conversion,
    kv_release,
    long_texts,
    meta_info,
    openai_metadata,
    output_streamer,
    request_fields,
    row_alloc,
    sessions,
)
from leankv_sglang.environment import APP_PATH, APP_PATH_ENV
from leankv_sglang.errors import LeanKVError
from leankv_sglang.plugin import selfcheck
from leankv_sglang.plugin.compatibility import check_environment
from leankv_sglang.server import install, middleware
from leankv_sglang.server.middleware import RequestFieldMiddleware, error_body

TARGETS = [m.TARGET for m in (kv_release, output_streamer, meta_info)]
TARGETS += [*openai_metadata.TARGETS, *row_alloc.TARGETS, *request_fields.TARGETS, *long_texts.TARGETS]
TARGETS += [*conversion.TARGETS, sessions.TARGET]


@pytest.fixture
def hooks(own_registry: Callable[[Iterable[str]], None]) -> None:
    own_registry(TARGETS)


@pytest.mark.parametrize(
    "patch", [row_alloc, kv_release, output_streamer, meta_info, openai_metadata, long_texts, sessions, conversion]
)
def test_a_patch_that_is_not_there_is_a_problem(patch: Any, hooks: None) -> None:
    assert "could not be hooked" in (patch.problem() or "")


@pytest.mark.parametrize(
    ("patch", "install"),
    [
        (row_alloc, lambda: row_alloc.install(lambda pool, reqs: None)),
        (kv_release, lambda: kv_release.install(lambda req, tree: None)),
        (output_streamer, lambda: output_streamer.install(lambda base: base)),
        (meta_info, lambda: meta_info.install("leankv")),
        (openai_metadata, lambda: openai_metadata.install("leankv")),
        (request_fields, request_fields.install),
        (long_texts, long_texts.install),
        (sessions, sessions.install),
        (conversion, conversion.install),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_patch_takes(patch: Any, install: Any, hooks: None) -> None:
    install()
    HookRegistry.apply_hooks()
    assert patch.problem() is None


def test_a_missing_one_stops_the_start(hooks: None) -> None:
    with pytest.raises(LeanKVError, match=r"request rows.*request's KV.*request's output"):
        selfcheck.check_launcher()


def test_rows_are_announced_with_their_requests(hooks: None) -> None:
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

    seen: list[Any] = []
    row_alloc.install(lambda pool, reqs: seen.extend((pool, r.kv.req_pool_idx) for r in reqs))
    HookRegistry.apply_hooks()
    pool = ReqToTokenPool(2, 64, "cpu", False)
    reqs = [SimpleNamespace(kv=SimpleNamespace(holds_kv=False, req_pool_idx=None)) for _ in range(3)]
    assert pool.alloc(reqs) is None
    assert seen == []
    rows = pool.alloc(reqs[:2])
    assert seen == [(pool, row) for row in rows]


def test_a_listener_hears_of_rows_and_of_slots_written(hooks: None) -> None:
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

    heard: list[Any] = []
    row_alloc.install(lambda pool, reqs: heard.append("given"))
    HookRegistry.apply_hooks()
    pool: Any = ReqToTokenPool(2, 64, "cpu", False)
    reqs = [SimpleNamespace(kv=SimpleNamespace(holds_kv=False, req_pool_idx=None))]
    lengths = {"req_pool_indices_cpu": torch.tensor([1]), "target_seq_lens_cpu": torch.tensor([5])}
    pool.alloc_aux_to_lengths(**lengths)
    assert heard == []
    pool.leankv_rows = SimpleNamespace(begin=heard.append, extended=lambda rows: heard.append(rows.tolist()))
    pool.alloc(reqs)
    pool.alloc_aux_to_lengths(**lengths)
    assert heard == ["given", reqs, [1]]


@pytest.mark.parametrize("mode", ["DECODE", "IDLE"])
def test_a_decode_keeps_its_rows_on_the_host(mode: str, hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

    made = SimpleNamespace(forward_mode=ForwardMode[mode], req_pool_indices_cpu=None)
    monkeypatch.setattr(ForwardBatch, "init_new", classmethod(lambda cls, batch, runner: made))
    row_alloc.install(lambda pool, reqs: None)
    HookRegistry.apply_hooks()
    init_new: Any = ForwardBatch.init_new
    assert init_new(SimpleNamespace(req_pool_indices_cpu=[4, 2]), None) is made
    assert made.req_pool_indices_cpu == ([4, 2] if mode == "DECODE" else None)


def test_meta_info_gets_one_object_and_the_rest_as_before(hooks: None) -> None:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    meta_info.install("leankv")
    HookRegistry.apply_hooks()
    state = SimpleNamespace(customized_info_accumulated={}, customized_info_reported_keys=set())
    manager = SimpleNamespace(_accumulate_request_meta_info=TokenizerManager._accumulate_request_meta_info)
    info = {"leankv": [[], [{"bytes": 1}]], "other": [[1], [2, 3]]}
    first: dict[str, Any] = {}
    TokenizerManager.update_request_meta_info(manager, first, state, info, 0, None)
    assert first == {"other": [1]}
    last: dict[str, Any] = {}
    TokenizerManager.update_request_meta_info(manager, last, state, info, 1, {"type": "stop"})
    assert last == {"other": [1, 2, 3], "leankv": {"bytes": 1}}
    assert "leankv" not in state.customized_info_accumulated
    assert set(info) == {"leankv", "other"}


def test_the_http_app_gets_the_middleware_once_and_innermost(hooks: None) -> None:
    from sglang.srt.entrypoints.http_server import app

    before, handlers = list(app.user_middleware), dict(app.exception_handlers)
    try:
        install.install_http(app)
        install.install_http(app)
        assert app.user_middleware[: len(before)] == before
        assert [m.cls for m in app.user_middleware[len(before) :]] == [RequestFieldMiddleware]
    finally:
        app.user_middleware[:] = before
        app.exception_handlers = handlers


def test_a_missing_route_is_named(hooks: None) -> None:
    handlers = {RequestValidationError: None}
    app = SimpleNamespace(user_middleware=[], routes=[SimpleNamespace(path="/generate")], exception_handlers=handlers)
    app.add_exception_handler = lambda kind, handler: None
    app.add_api_route = lambda path, endpoint, **how: None
    app.build_middleware_stack = lambda: None
    with pytest.raises(LeanKVError, match=r"there is no route /v1/completions"):
        install.install_http(app)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("SGLANG_RUST_SERVER", "1", "unset SGLANG_RUST_SERVER"), (APP_PATH_ENV, "mine:app", f"unset {APP_PATH_ENV}")],
)
def test_other_fronts_are_refused(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(APP_PATH_ENV, APP_PATH)
    check_environment()
    monkeypatch.setenv(name, value)
    with pytest.raises(LeanKVError, match=says):
        check_environment()


def test_errors_look_like_sglangs() -> None:
    """What the middleware writes by hand."""
    from sglang.srt.entrypoints.http_server import _create_error_response
    from sglang.srt.entrypoints.openai.protocol import ErrorResponse

    expected = ErrorResponse(message="m", type="BadRequestError", param="leankv", code=400).model_dump()
    assert error_body("m", middleware.ROUTES["/v1/completions"]) == expected
    assert error_body("m", middleware.ROUTES["/generate"]) == json.loads(
        bytes(_create_error_response(ValueError("m")).body)
    )
