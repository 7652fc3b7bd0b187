"""Target: ``TokenizerManager.update_request_meta_info`` of sglang 0.5.23.

Reason: additional output fields arrive as lists that grow with a stream; ours is one object, sent with the last output.
There is a seam for a subclass of the tokenizer manager but none to name one; a hook takes our field out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info"


def install(key: str) -> None:
    """Have ``key`` be the last object sent under it. Call before a tokenizer manager runs."""

    def around(
        original: Callable[..., None],
        manager: Any,
        meta_info: dict[str, Any],
        state: Any,
        customized_info: dict[str, Any],
        index: int,
        finish_reason: Any,
    ) -> None:
        rest = {name: values for name, values in customized_info.items() if name != key}
        original(manager, meta_info, state, rest, index, finish_reason)
        sent = customized_info[key][index] if key in customized_info else []
        if sent:
            meta_info[key] = sent[-1]

    hook.register(TARGET, around, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    arguments = ["self", "meta_info", "state", "customized_info", "index", "finish_reason"]
    return hook.problem(TARGET, "a request's meta_info", arguments)
