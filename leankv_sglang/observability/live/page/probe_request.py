"""A probe's body made into the tokens and the namespace that a request of the same fields would have."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leankv_patches.request_fields import check_name
from leankv_patches.request_ranges import check_tokens
from leankv_sglang.compression.request_params import FIELD, resolve, salted
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError

PROMPTS = ("text", "messages", "input_ids")
_NAMES = ("cache_salt", "extra_key", "lora_path")
_GENERATE = ("sampling_params", "stream", "rid", "return_logprob")
"""What of a request to ``/generate`` may stay in a probe's body, and changes nothing."""


@dataclass(frozen=True)
class Prompt:
    """What the radix key of a request is made of."""

    tokens: array[int]
    extra_key: str | None
    cache_salt: str | None


async def read_prompt(body: Any, config: LeanKVConfig, manager: Any, chat: Any) -> Prompt:
    """The prompt that a probe is about.

    Args:
        body: decoded JSON: one of ``text``, ``messages`` and ``input_ids``, with ``leankv``, ``cache_salt``,
            ``extra_key`` and ``lora_path`` as ``/generate`` takes them; beside ``messages``, all that
            ``/v1/chat/completions`` takes.
        config: the server's.
        manager: SGLang's tokenizer manager.
        chat: SGLang's handler of chat completions.

    Raises:
        LeanKVError: one sentence saying what is wrong with the body.
    """
    if not isinstance(body, dict) or sum(body.get(name) is not None for name in PROMPTS) != 1:
        raise LeanKVError(f"A probe takes a JSON object with one of {', '.join(PROMPTS[:-1])} and {PROMPTS[-1]}.")
    if body.get("messages") is None:
        _check_fields(body)
    salt, extra_key, adapter = (_string(body, name) for name in _NAMES)
    salt = salted(resolve(body.get(FIELD), config), salt)
    if adapter is not None:
        extra_key = (extra_key or "") + await _adapter_id(manager, adapter)
    tokens = await _tokens(body, manager, chat)
    if len(tokens) >= manager.context_len:
        raise LeanKVError(
            f"This prompt has {len(tokens):,} tokens; the model takes fewer than {manager.context_len:,}."
        )
    return Prompt(array("q", tokens), extra_key, salt)


def _check_fields(body: dict[str, Any]) -> None:
    known = (*PROMPTS, FIELD, *_NAMES, *_GENERATE)
    if unknown := next((name for name in body if name not in known), None):
        raise LeanKVError(f"A probe has no field {unknown[:50]!r}: it takes {', '.join(known[:-1])} and {known[-1]}.")


def _string(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise LeanKVError(f"{name} is a string.")
    if not value:
        return None
    _as_requests_are(check_name, name, value)
    return value


def _as_requests_are(check: Callable[..., None], *args: Any) -> None:
    """A check that requests pass too, whose sentence is a probe's answer."""
    try:
        check(*args)
    except ValueError as error:
        raise LeanKVError(str(error)) from None


async def _tokens(body: dict[str, Any], manager: Any, chat: Any) -> list[int]:
    given = body.get("input_ids")
    if given is not None:
        if not isinstance(given, list) or any(type(token) is not int for token in given):
            raise LeanKVError("input_ids is a list of whole numbers.")
        _as_requests_are(check_tokens, given, manager.model_config.vocab_size)
        return list(given)
    text: Any = body.get("text")
    if body.get("messages") is not None:
        ids, text = await _chat_prompt(body, chat)
        if ids is not None:
            return ids
    if not isinstance(text, str) or not text:
        raise LeanKVError("text is a string, and not empty.")
    if manager.tokenizer is None:
        raise LeanKVError("This server has no tokenizer (--skip-tokenizer-init); give input_ids.")
    tokens, _ = await manager._tokenize_texts(text, False)
    return list(tokens)


async def _chat_prompt(body: dict[str, Any], chat: Any) -> tuple[list[int] | None, str | None]:
    """Tokens or text that SGLang makes of messages."""
    from pydantic import ValidationError
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

    fields = {name: value for name, value in body.items() if name not in (FIELD, *_NAMES)}
    try:
        request = ChatCompletionRequest(**{"model": "", **fields})
        if said := chat._validate_request(request):
            raise LeanKVError(str(said))
        converted, _ = await asyncio.get_running_loop().run_in_executor(
            None, chat._convert_to_internal_request, request, None
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise LeanKVError(f"messages cannot be read: {first['msg'].rstrip('.')}.") from None
    except (ValueError, TypeError) as error:
        raise LeanKVError(f"messages cannot be read: {str(error).rstrip('.')}.") from None
    if converted.input_ids is not None:
        return list(converted.input_ids), None
    return None, converted.text


async def _adapter_id(manager: Any, name: str) -> str:
    """The id of an adapter, which is part of the radix key."""
    if not hasattr(manager, "lora_registry"):
        raise LeanKVError("lora_path needs a server with --enable-lora.")
    try:
        adapter: str = await manager.lora_registry.acquire(name)
    except ValueError:
        raise LeanKVError(f"lora_path: no adapter {name!r} is loaded.") from None
    await manager.lora_registry.release(adapter)
    return adapter
