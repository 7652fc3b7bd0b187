"""What LeanKV adds where requests come in and answers go out: the process of the tokenizer manager and the HTTP app."""

from __future__ import annotations

import inspect
import os
from typing import Any

from leankv_patches import (
    between_steps,
    choice_seeds,
    control_waits,
    conversion,
    detokenized_tokens,
    drain,
    hook,
    logging_fields,
    long_texts,
    meta_info,
    openai_metadata,
    quiet_children,
    request_fields,
    sessions,
    start_failure,
    tokenizer_workers,
)
from leankv_sglang.compression.request_params import FIELD
from leankv_sglang.environment import DEFAULT_DRAIN_SECONDS, DRAIN_ENV
from leankv_sglang.plugin.faults import on_child_failure
from leankv_sglang.plugin.selfcheck import stop_if
from leankv_sglang.server.middleware import TAKING, RequestFieldMiddleware
from leankv_sglang.server.refusals import install_refusals


def install_tokenizer() -> None:
    """What a tokenizer manager's process needs: fields are checked, answers carry ``leankv``, choices differ by seed.

    Raises:
        LeanKVError: one sentence naming every seam that failed.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    from leankv_sglang.observability.live.messages import LeanKVPart
    from leankv_sglang.observability.live.page.watch import take

    if not hook.is_hooked(meta_info.TARGET):
        between_steps.install_tokenizer(LeanKVPart, take)
        meta_info.install(FIELD)
        choice_seeds.install()
        request_fields.install()
        control_waits.install()
        logging_fields.install()
        long_texts.install()
        sessions.install()
        drain.install(_drain_seconds())
        HookRegistry.apply_hooks()
    patches = (meta_info, choice_seeds, request_fields, control_waits, logging_fields, long_texts, sessions, drain)
    problems = [patch.problem() for patch in patches] + [between_steps.tokenizer_problem()]
    stop_if([problem for problem in problems if problem])


def install_launcher() -> None:
    """What the launching process of a server needs: its children leave signals to it, and tell it why they fail.

    Raises:
        LeanKVError: one sentence naming every seam that failed.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    quiet_children.install()
    start_failure.install_launcher(on_child_failure)
    tokenizer_workers.install(drain.note_interrupt, drain.was_interrupted, _drain_seconds())
    HookRegistry.apply_hooks()
    problems = (quiet_children.problem(), start_failure.launcher_problem(), tokenizer_workers.problem())
    stop_if([problem for problem in problems if problem])


def install_http(app: Any) -> None:
    """Put the field ``leankv`` in front of SGLang's HTTP app and into its answers; once per process.

    Raises:
        LeanKVError: one sentence naming every seam that failed.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry
    from starlette.middleware import Middleware

    from leankv_sglang.observability.live.page.browser_key import install_browser_key
    from leankv_sglang.observability.live.page.routes import PATH, install_routes

    install_tokenizer()
    if not any(m.cls is RequestFieldMiddleware for m in app.user_middleware):
        openai_metadata.install(FIELD)
        detokenized_tokens.install()
        conversion.install()
        HookRegistry.apply_hooks()
        # Innermost: behind authentication, decompression and CORS, which add themselves at the other end.
        app.user_middleware.append(Middleware(RequestFieldMiddleware))
        install_refusals(app)
        install_routes(app)
        install_browser_key(app, PATH)
    stop_if(_problems(app))


def _drain_seconds() -> float:
    return float(os.environ.get(DRAIN_ENV, DEFAULT_DRAIN_SECONDS))


def _problems(app: Any) -> list[str]:
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
    from sglang.srt.managers.io_struct import GenerateReqInput

    problems = [problem for patch in (openai_metadata, detokenized_tokens, conversion) if (problem := patch.problem())]
    paths = {getattr(route, "path", None) for route in app.routes}
    problems += [f"there is no route {path}" for path in TAKING if path not in paths]
    for taker in (GenerateReqInput, CompletionRequest, ChatCompletionRequest, Engine.generate):
        if "cache_salt" not in inspect.signature(taker).parameters:
            problems.append(f"{taker.__qualname__} takes no cache_salt")
    return problems
