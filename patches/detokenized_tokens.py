"""Target: ``OpenAIServingDetokenize._convert_to_internal_request`` of sglang 0.5.23.

Reason: a token that no int32 holds is HTTP 500 with a traceback in the log, and one outside the vocabulary is silently
no text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.entrypoints.openai.serving_tokenize.OpenAIServingDetokenize._convert_to_internal_request"


def convert(original: Callable[..., Any], serving: Any, request: Any, *args: Any, **named: Any) -> Any:
    """The request, whose tokens are the vocabulary's.

    Raises:
        ValueError: one sentence naming a token that is not; the route makes HTTP 400 of it.
    """
    vocabulary = serving.tokenizer_manager.model_config.vocab_size
    for one in request.tokens:
        for token in one if isinstance(one, list) else [one]:
            if not 0 <= token < vocabulary:
                raise ValueError(f"tokens are from 0 to {vocabulary - 1}, which {token} is not.")
    return original(serving, request, *args, **named)


def install() -> None:
    """Register the hook. Call before requests are taken."""
    hook.register(TARGET, convert, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.first_problem({TARGET: ["self", "request", "raw_request"]}, "checks of what is detokenized")
