"""Targets: the builders of whole OpenAI responses of sglang 0.5.23.

Reason: these responses have a ``metadata`` object for what OpenAI's have no field for, which SGLang fills with a fixed
set; hooks add an entry. Chunks of a stream have no such object.
"""

from __future__ import annotations

from typing import Any

from leankv_patches import hook

_OPENAI = "sglang.srt.entrypoints.openai"
TARGETS = (
    f"{_OPENAI}.serving_completions.OpenAIServingCompletion._build_completion_response",
    f"{_OPENAI}.serving_chat.OpenAIServingChat._build_chat_response",
)


def install(key: str) -> None:
    """Add ``metadata[key]``: what each choice's ``meta_info`` has under it. Call before the HTTP server runs."""

    def after(response: Any, _serving: Any, request: Any, ret: list[dict[str, Any]], created: int) -> Any:
        found = [item["meta_info"].get(key) for item in ret]
        # An error is a plain response.
        if isinstance(getattr(response, "metadata", None), dict) and any(found):
            response.metadata[key] = found
        return response

    for target in TARGETS:
        hook.register(target, after, "AFTER")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    arguments = ["self", "request", "ret", "created"]
    found = (hook.problem(target, "OpenAI responses", arguments, target.rpartition(".")[2]) for target in TARGETS)
    return next((sentence for sentence in found if sentence), None)
