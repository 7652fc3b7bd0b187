"""A probe's body: what is taken, what is refused in a sentence, what it becomes; and its answer in words."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.observability.live.page.probe_request import Prompt, read_prompt
from leankv_sglang.observability.live.page.probe_words import REASONS, sentence
from leankv_sglang.observability.live.scheduler import prober
from tests.sentences import is_one_sentence


class Adapters:
    """SGLang's registry of adapters, of which one is known."""

    released: list[str]

    def __init__(self) -> None:
        self.released = []

    async def acquire(self, name: str) -> str:
        if name != "known":
            raise ValueError(f"{name} is not loaded.")
        return "id7"

    async def release(self, adapter: str) -> None:
        self.released.append(adapter)


async def tokenize(text: str, _cross: bool) -> tuple[list[int], None]:
    return [ord(letter) for letter in text], None


def prompt(body: Any, **changed: Any) -> Prompt:
    model = SimpleNamespace(vocab_size=256)
    known = {"tokenizer": object(), "context_len": 100, "_tokenize_texts": tokenize, "lora_registry": Adapters()}
    manager = SimpleNamespace(model_config=model, **known)
    manager.__dict__.update(changed)
    return asyncio.run(read_prompt(body, LeanKVConfig(), manager, None))


def test_text_and_tokens_become_a_radix_key() -> None:
    assert prompt({"text": "ab"}) == prompt({"input_ids": [97, 98], "sampling_params": {"temperature": 1}})
    named = prompt({"text": "a", "cache_salt": "s", "extra_key": "e", "leankv": {"profile": "small"}})
    assert named.extra_key == "e"
    assert named.cache_salt == "leankv:small;s"
    assert prompt({"text": "a", "lora_path": "known", "extra_key": "e"}).extra_key == "eid7"


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        {},
        {"text": "a", "input_ids": [1]},
        {"text": ""},
        {"text": 3},
        {"input_ids": []},
        {"input_ids": [1.5]},
        {"input_ids": [True]},
        {"input_ids": [-1]},
        {"input_ids": [256]},
        {"input_ids": [2**70]},
        {"text": "a", "cache_salt": "s" * 5000},
        {"text": "a", "cahce_salt": "s"},
        {"input_ids": "12"},
        {"input_ids": [1] * 100},
        {"text": "a", "cache_salt": 3},
        {"text": "a", "leankv": {"profile": "nonsense"}},
        {"text": "a", "lora_path": "unknown"},
    ],
    ids=lambda body: str(body)[:40],
)
def test_other_bodies_are_refused_in_a_sentence(body: Any) -> None:
    with pytest.raises(LeanKVError) as refusal:
        prompt(body)
    assert is_one_sentence(str(refusal.value))


def test_without_a_tokenizer_text_is_refused() -> None:
    with pytest.raises(LeanKVError, match="give input_ids"):
        prompt({"text": "a"}, tokenizer=None)


def found(**changed: Any) -> dict[str, Any]:
    places = {"device": 128, "host": 0, "storage": 0}
    return {
        "prompt_tokens": 200,
        "hit_tokens": 128,
        "hit_from": places,
        "bytes": 2048,
        "pages": {"whole": 1, "trimmed": 1, "demoted": 0},
        "to_compute": {"tokens": 72, "seconds": 0.5, "bytes": 100},
        "ends_because": "not_cached",
        "elsewhere": [],
        **changed,
    }


def test_an_answer_in_words() -> None:
    said = "128 of 200 tokens would hit, 2.0 KiB in 2 pages; 72 would be computed, in about 500 ms."
    assert sentence(found()) == f"{said} The hit ends there since what follows is not cached."
    beyond = sentence(found(hit_tokens=192, hit_from={"device": 128, "host": 64, "storage": 0}))
    assert "192 of 200 tokens would hit (128 on the device, 64 from host memory)" in beyond
    other = [{"same_salt": True, "accuracy": "small", "hit_tokens": 192}]
    assert "At accuracy small 192 would." in sentence(found(ends_because="other_accuracy", elsewhere=other))


def test_every_reason_has_its_words() -> None:
    codes = {value for name, value in vars(prober).items() if name.isupper() and isinstance(value, str)}
    assert codes == set(REASONS)
