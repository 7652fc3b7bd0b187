"""Long texts are refused or tokenized aside, and between prompts others have their turn."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.entrypoints.openai.parallel_prompt_encode import parallel_prompt_encode
from sglang.srt.entrypoints.openai.protocol import TokenizeResponse
from sglang.srt.plugins.hook_registry import HookRegistry
from starlette.responses import Response
from transformers import AutoTokenizer

from leankv_patches import long_texts, request_fields
from tests.tiny_models import tiny_folder


@pytest.fixture
def tokenizer(tmp_path: Path, own_registry: Any) -> Any:
    """One that refuses texts, with our hooks."""
    own_registry(long_texts.TARGETS)
    long_texts.install()
    HookRegistry.apply_hooks()
    loaded = AutoTokenizer.from_pretrained(tiny_folder(tmp_path))
    long_texts.limit(loaded, 100)
    return loaded


def test_every_way_to_tokenize_refuses_a_text_that_cannot_fit(tokenizer: Any) -> None:
    long = "a" * 100_000
    for ask in (
        lambda: tokenizer.encode(long),
        lambda: tokenizer(["a", long]),
        lambda: tokenizer([["a", long]]),
        lambda: tokenizer("a", long),
        lambda: parallel_prompt_encode(tokenizer, long, {}),
        lambda: tokenizer.apply_chat_template([{"role": "user", "content": long}], tokenize=True),
    ):
        with pytest.raises(ValueError, match="characters; at most"):
            ask()
    assert len(tokenizer.encode("a" * 101)) > 0


def test_a_tokenizer_without_a_limit_takes_any_text(tokenizer: Any, tmp_path: Path) -> None:
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert len(other.encode("ab" * 50_000)) > 100


def test_a_text_that_is_cut_may_have_any_length(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context

    for cut in (True, False):
        monkeypatch.setattr(runtime_context, "get_serving", lambda cut=cut: SimpleNamespace(allow_auto_truncate=cut))
        manager = SimpleNamespace(tokenizer=SimpleNamespace(), context_len=5)

        class Key:
            """What a tokenizer is as a key."""

        manager.tokenizer = Key()
        long_texts.begin(lambda manager: None, manager)
        assert (manager.tokenizer in long_texts._limits) is not cut


def test_long_texts_are_tokenized_in_a_thread() -> None:
    async def original(manager: Any, texts: Any) -> Any:
        return threading.current_thread()

    def ran(texts: Any, batching: Any = None) -> Any:
        manager = SimpleNamespace(async_dynamic_batch_tokenizer=batching)
        return asyncio.run(request_fields.tokenize(original, manager, texts))

    main = threading.current_thread()
    assert ran("short") is main
    assert ran("a" * (long_texts.LONG + 1)) is not main
    assert ran([["a" * long_texts.LONG, "b"]]) is not main
    assert ran("a" * (long_texts.LONG + 1), batching=object()) is main
    assert asyncio.run(long_texts.answer(original, None, "short")) is not main


def test_tokens_are_written_where_they_were_found() -> None:
    """Fastapi would walk through millions in the event loop."""
    tokens = TokenizeResponse(tokens=[[1, 2], [3]], count=[2, 1], max_model_len=5)

    async def original() -> Any:
        return tokens

    answer = asyncio.run(long_texts.answer(original))
    assert isinstance(answer, Response)
    assert json.loads(bytes(answer.body)) == tokens.model_dump(by_alias=True)


def test_what_waits_does_not_run_aside() -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="may not wait"):
        asyncio.run(long_texts.aside(waits()))


def test_between_the_prompts_of_a_request_others_have_their_turn() -> None:
    order: list[str] = []

    async def tokenize(manager: Any, obj: Any) -> None:
        order.append("prompt")

    async def neighbour() -> None:
        order.append("neighbour")

    async def both() -> None:
        waiting = asyncio.create_task(neighbour())
        for _ in range(2):
            await long_texts.one_request(tokenize, None, None)
        await waiting

    asyncio.run(both())
    assert order == ["neighbour", "prompt", "prompt"]
