"""Targets: the builders of whole OpenAI responses of sglang 0.5.23.

Reason: these responses have a ``metadata`` object for what OpenAI's have no field for, which SGLang fills with a fixed
set; hooks add an entry. Chunks of a stream have no such object.
"""

from __future__ import annotations

import inspect
from typing import Any

_OPENAI = "sglang.srt.entrypoints.openai"
TARGETS = (
    f"{_OPENAI}.serving_completions.OpenAIServingCompletion._build_completion_response",
    f"{_OPENAI}.serving_chat.OpenAIServingChat._build_chat_response",
)


def install(key: str) -> None:
    """Add ``metadata[key]``: what each choice's ``meta_info`` has under it. Call before the HTTP server runs."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def after(response: Any, _serving: Any, _request: Any, ret: list[dict[str, Any]], *_: Any) -> Any:
        found = [item["meta_info"].get(key) for item in ret]
        # An error is a plain response.
        if isinstance(getattr(response, "metadata", None), dict) and any(found):
            response.metadata[key] = found
        return response

    for target in TARGETS:
        HookRegistry.register(target, after, HookType.AFTER)


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    import pkgutil

    from sglang.srt.plugins.hook_registry import HookRegistry

    for target in TARGETS:
        name = target.rpartition(".")[2]
        if target not in HookRegistry._patched:
            return f"OpenAI responses ({name}) could not be hooked"
        names = list(inspect.signature(inspect.unwrap(pkgutil.resolve_name(target))).parameters)
        if names != ["self", "request", "ret", "created"]:
            return f"{name} takes {names} now"
    return None
