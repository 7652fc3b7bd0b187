"""What LeanKV adds where requests come in and answers go out: the process of the tokenizer manager and the HTTP app."""

from __future__ import annotations

import inspect
from typing import Any

from leankv_patches import choice_seeds, hook, meta_info, openai_metadata, request_fields
from leankv_sglang.compression.request_params import FIELD
from leankv_sglang.plugin.selfcheck import stop_if
from leankv_sglang.server.middleware import TAKING, RequestFieldMiddleware, bad_request


def install_tokenizer() -> None:
    """What a tokenizer manager's process needs: fields are checked, answers carry ``leankv``, choices differ by seed.

    Raises:
        LeanKVError: one sentence naming every seam that failed.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    if not hook.is_hooked(meta_info.TARGET):
        meta_info.install(FIELD)
        choice_seeds.install()
        request_fields.install()
        HookRegistry.apply_hooks()
    stop_if([problem for patch in (meta_info, choice_seeds, request_fields) if (problem := patch.problem())])


def install_http(app: Any) -> None:
    """Put the field ``leankv`` in front of SGLang's HTTP app and into its answers; once per process.

    Raises:
        LeanKVError: one sentence naming every seam that failed.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry
    from starlette.middleware import Middleware

    install_tokenizer()
    if not any(m.cls is RequestFieldMiddleware for m in app.user_middleware):
        openai_metadata.install(FIELD)
        HookRegistry.apply_hooks()
        # Innermost: behind authentication, decompression and CORS, which add themselves at the other end.
        app.user_middleware.append(Middleware(RequestFieldMiddleware))
        # Some routes of SGLang catch it themselves, and mean a request that is wrong.
        app.add_exception_handler(ValueError, bad_request)
    stop_if(_problems(app))


def _problems(app: Any) -> list[str]:
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
    from sglang.srt.managers.io_struct import GenerateReqInput

    problems = [problem] if (problem := openai_metadata.problem()) else []
    paths = {getattr(route, "path", None) for route in app.routes}
    problems += [f"there is no route {path}" for path in TAKING if path not in paths]
    for taker in (GenerateReqInput, CompletionRequest, ChatCompletionRequest, Engine.generate):
        if "cache_salt" not in inspect.signature(taker).parameters:
            problems.append(f"{taker.__qualname__} takes no cache_salt")
    return problems
