"""Targets: ``init_tokenizer_and_processor`` and ``_tokenize_one_request`` of ``TokenizerManager``,
``parallel_prompt_encode``, ``_handle_non_streaming_request`` of ``OpenAIServingTokenize`` and
``OpenAIServingDetokenize``, all of sglang 0.5.23; ``TokenizersBackend._encode_plus`` of transformers, where every
route's texts arrive.

Reason: texts are tokenized in the event loop, a megabyte in a second, and everybody waits. Here one that cannot fit is
refused before, one that is long is tokenized in a thread, and between the prompts of a request others have their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel
from starlette.responses import Response

from leankv_patches import hook
from leankv_patches.text_room import TextRoom, room_for_text

_OPENAI = "sglang.srt.entrypoints.openai"
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
BEGIN, ONE = (f"{_MANAGER}.{name}" for name in ("init_tokenizer_and_processor", "_tokenize_one_request"))
ENCODE = "transformers.tokenization_utils_tokenizers.TokenizersBackend._encode_plus"
PROMPT = f"{_OPENAI}.parallel_prompt_encode.parallel_prompt_encode"
ANSWER = [
    f"{_OPENAI}.serving_tokenize.OpenAIServing{name}._handle_non_streaming_request"
    for name in ("Tokenize", "Detokenize")
]
TARGETS: dict[str, list[str] | None] = {
    BEGIN: ["self"],
    ONE: ["self", "obj"],
    ENCODE: None,
    PROMPT: ["tokenizer", "text", "encode_kwargs"],
    **{target: ["self", "adapted_request", "request", "raw_request"] for target in ANSWER},
}
"""What is hooked, with its arguments."""

LONG = 1 << 15
"""Characters of a text that is tokenized in a thread; a shorter one takes some 30 ms."""

_limits: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_rooms: WeakKeyDictionary[Any, TextRoom | None] = WeakKeyDictionary()


def begin(original: Callable[[Any], None], manager: Any) -> None:
    """Load the tokenizer, and see how long its texts may be."""
    from sglang.srt.runtime_context import get_serving

    original(manager)
    # What is cut to the room there is may have any length.
    if manager.tokenizer is not None and not get_serving().allow_auto_truncate:
        limit(manager.tokenizer, manager.context_len)


def limit(tokenizer: Any, tokens: int) -> None:
    """Have a tokenizer refuse texts that cannot fit into so many tokens."""
    _limits[tokenizer] = tokens


def encode(original: Callable[..., Any], tokenizer: Any, text: Any, *args: Any, **named: Any) -> Any:
    """Tokenize texts that can fit.

    Raises:
        ValueError: one sentence, where one cannot.
    """
    tokens = _limits.get(tokenizer)
    if tokens is not None:
        for one in (text, *args[:1], named.get("text_pair")):
            for string in _strings(one):
                # No token is shorter than one character.
                if len(string) > tokens and (room := _room(tokenizer, tokens)) is not None:
                    room.check(string)
    return original(tokenizer, text, *args, **named)


def _room(tokenizer: Any, tokens: int) -> TextRoom | None:
    """Found out when it is first asked for: a vocabulary takes half a second to read."""
    if tokenizer not in _rooms:
        _rooms[tokenizer] = room_for_text(tokenizer, tokens)
    return _rooms[tokenizer]


async def one_request(original: Callable[[Any, Any], Awaitable[Any]], manager: Any, obj: Any) -> Any:
    """Tokenize one prompt of what may be thousands."""
    await asyncio.sleep(0)
    return await original(manager, obj)


async def answer(original: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **named: Any) -> Any:
    """Tokenize or detokenize in a thread, and write the answer there: these routes take any number of texts."""

    async def written() -> Any:
        result = await original(*args, **named)
        # As SGLang does for larger answers; fastapi would walk through every token in Python.
        if isinstance(result, BaseModel):
            return Response(result.model_dump_json(by_alias=True), media_type="application/json")
        return result

    return await aside(written())


async def aside(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits, and so would have others wait, in a thread."""
    return await asyncio.to_thread(_run, coroutine)


def length(texts: Any) -> int:
    """Characters of a text, or of all in lists."""
    return sum(map(len, _strings(texts)))


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError("What runs aside may not wait.")


def _strings(texts: Any) -> Iterator[str]:
    if isinstance(texts, str):
        yield texts
    elif isinstance(texts, list | tuple):
        for one in texts:
            yield from _strings(one)


def install() -> None:
    """Register the hooks. Call before a tokenizer is loaded."""
    hook.register(BEGIN, begin, "AROUND")
    hook.register(ONE, one_request, "AROUND")
    for target in (ENCODE, PROMPT):
        hook.register(target, encode, "AROUND")
    for target in ANSWER:
        hook.register(target, answer, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "limits of texts")
