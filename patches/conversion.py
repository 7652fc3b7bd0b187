"""Targets: ``OpenAIServingBase.__init__``, ``OpenAIServingTokenize._tokenize_chat_request``,
``OpenAIServingResponses._make_request`` and ``create_responses`` of sglang 0.5.23.

Reason: where a route converts what it was asked into a request, whatever Python raises is HTTP 500, though only the
client's fields are read there: ``"chat_template_kwargs": {"tools": 5}`` was one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import jinja2
import pydantic

from leankv_patches import hook
from leankv_patches.request_ranges import MISFITS, RANGES, reason, say
from leankv_patches.schema_words import schema_sentence

_OPENAI = "sglang.srt.entrypoints.openai"
_RESPONSES = f"{_OPENAI}.serving_responses.OpenAIServingResponses"
BEGIN = f"{_OPENAI}.serving_base.OpenAIServingBase.__init__"
CHAT = f"{_OPENAI}.serving_tokenize.OpenAIServingTokenize._tokenize_chat_request"
RESPONSE, RESPONSES = f"{_RESPONSES}._make_request", f"{_RESPONSES}.create_responses"
TARGETS: dict[str, list[str] | None] = {
    BEGIN: ["self", "tokenizer_manager"],
    CHAT: ["self", "request"],
    RESPONSE: ["self", "request", "prev_response", "tokenizer", "tool_adapter"],
    RESPONSES: ["self", "request", "raw_request"],
}
"""What is hooked, with its arguments."""
STEPS = ("_validate_request", "_convert_to_internal_request", "_process_messages")
"""Methods of every serving class, or of chat's, which read a request's fields and do nothing else."""

GIVEN = ("self", "messages", "conversation", "tools", "tokenize", "add_generation_prompt", "return_dict")
"""Arguments of a chat template that the server gives itself."""

LEAST_OUTPUT = 2
"""Of a response: SGLang takes two off for tokens that a model may add."""
MOST_TOKENS = int(RANGES["max_new_tokens"][1])
"""Largest limit of an answer."""

logger = logging.getLogger(__name__)


def begin(original: Callable[..., None], serving: Any, *args: Any, **named: Any) -> None:
    """Make a route's server, whichever it is, with its own methods in front of which ours stand."""
    original(serving, *args, **named)
    for name in STEPS:
        if method := getattr(serving, name, None):
            setattr(serving, name, functools.partial(convert, method))


def convert(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Read a request's fields.

    Raises:
        ValueError: one sentence, where they cannot be read.
    """
    try:
        for one in args:
            _check_template(getattr(one, "chat_template_kwargs", None))
            _check_limits(one)
        result = original(*args, **named)
    except (pydantic.ValidationError, *MISFITS, jinja2.TemplateError) as error:
        logger.info("A request cannot be converted.", exc_info=True)
        raise ValueError(sentence(error)) from error
    except ValueError as error:
        if isinstance(error.__cause__, MISFITS):
            raise ValueError(sentence(error.__cause__)) from error
        raise
    # A check's own answer may go on for pages, as that of a tool's schema.
    return result.partition("\n")[0] if isinstance(result, str) else result


def sentence(error: Exception) -> str:
    """What is wrong with a request, by what reading it has raised."""
    if isinstance(error, pydantic.ValidationError):
        return schema_sentence(error.errors())  # type: ignore[arg-type]
    if isinstance(error, jinja2.TemplateError):
        return f"The model's chat template refuses this: {reason(error)}."
    return f"The request's fields do not fit together: {reason(error)}."


def _check_template(names: Any) -> None:
    if not isinstance(names, dict):
        return
    if own := [name for name in names if name in GIVEN]:
        raise ValueError(f"chat_template_kwargs cannot have {say(own[0])}, which the server gives the template itself.")
    if "chat_template" in names:
        from sglang.srt.runtime_context import get_serving

        # SGLang asks this on the routes of chat and of tokens, not for responses.
        if not get_serving().trust_request_chat_template:
            raise ValueError("A request's own chat_template is taken only with --trust-request-chat-template.")


def _check_limits(request: Any) -> None:
    """What becomes the scheduler's ``max_new_tokens``, under the name that the client knows."""
    for name in ("max_tokens", "max_completion_tokens"):
        most = getattr(request, name, None)
        if isinstance(most, int) and not 0 <= most <= MOST_TOKENS:
            raise ValueError(f"{name} goes from 0 to {MOST_TOKENS}, which {most} does not.")


async def make_request(original: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
    """As :func:`convert` for a route of its own, which tells only errors of this kind as they are."""
    from sglang.srt.entrypoints.openai.serving_responses import _MediaInputValidationError

    try:
        return await original(*args, **named)
    except (pydantic.ValidationError, *MISFITS, jinja2.TemplateError) as error:
        raise _MediaInputValidationError(sentence(error)) from error
    except ValueError as error:
        raise _MediaInputValidationError(str(error)) from error


async def create_responses(
    original: Callable[..., Awaitable[Any]], serving: Any, request: Any, *args: Any, **named: Any
) -> Any:
    """Answer a request for a response, if its own limit is one: less two, it becomes the scheduler's."""
    name, most = "max_output_tokens", request.max_output_tokens
    if most is not None and not LEAST_OUTPUT <= most <= MOST_TOKENS:
        said = f"{name} goes from {LEAST_OUTPUT} to {MOST_TOKENS}, which {most} does not."
        return serving.create_error_response(said, param=name)
    return await original(serving, request, *args, **named)


def install() -> None:
    """Register the hooks. Call before routes have their servers."""
    for target, replacement in ((BEGIN, begin), (CHAT, convert)):
        hook.register(target, replacement, "AROUND")
    for target, answer in ((RESPONSE, make_request), (RESPONSES, create_responses)):
        hook.register(target, answer, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "reading of requests")
