"""LoRA adapters on a real server: each has pages of its own, and its hits equal its misses in any company."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from bench.common.server import Completion, Server
from tests.e2e.adapters import adapted, adapter
from tests.e2e.forked import Zygote
from tests.e2e.hits import PAGE, asked_after_a_probe, assert_same
from tests.e2e.prompts import tiny_passages

NAMES = (None, "wide", "narrow")
"""Nobody's adapter, and two."""
NEW_TOKENS = 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of two ranks, one of which has queries and values alone."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "wide": adapter(folder / "wide", rank=8, seed=1),
        "narrow": adapter(folder / "narrow", rank=4, seed=2, modules=("self_attn.q_proj", "self_attn.v_proj")),
    }


@pytest.fixture(scope="module")
def server(tiny: Path, folders: dict[str, Path], zygote: Zygote) -> Iterator[Server]:
    """All tokens at eight bits, so that answers are near those of the model itself."""
    paths = [f"{name}={folder}" for name, folder in folders.items()]
    flags = ("--max-total-tokens", "8192", "--chunked-prefill-size", "256", "--leankv-tiers", "k8v8")
    with zygote.serve("--model-path", str(tiny), *flags, "--enable-lora", "--lora-paths", *paths) as running:
        yield running


def ask(server: Server, prompt: list[int], name: str | None, new_tokens: int = NEW_TOKENS) -> Completion:
    return server.generate(prompt, new_tokens, fields={"lora_path": name} if name else {})


def ask_after_a_probe(server: Server, prompt: list[int], name: str | None) -> Completion:
    return asked_after_a_probe(server, prompt, NEW_TOKENS, **({"lora_path": name} if name else {}))


def test_adapters_and_the_base_share_no_page(server: Server) -> None:
    prompt = tiny_passages(1, 400, 400, seed=3)[0]
    server.flush()
    misses = [ask_after_a_probe(server, prompt, name) for name in NAMES]
    hits = [ask_after_a_probe(server, prompt, name) for name in NAMES]
    assert [miss.cached for miss in misses] == [0, 0, 0]
    for miss, hit in zip(misses, hits, strict=True):
        assert hit.cached == (len(prompt) - 1) // PAGE * PAGE
        assert_same(hit, miss)
    assert len({tuple(miss.tokens) for miss in misses}) == len(NAMES)


def test_hits_equal_misses_in_any_company(server: Server) -> None:
    asked = [(prompt, name) for prompt in tiny_passages(2, 150, 600, seed=4) for name in NAMES]
    alone = []
    for prompt, name in asked:
        server.flush()
        alone.append(ask(server, prompt, name))
    order = [*range(len(asked)), *reversed(range(len(asked)))]
    server.flush()
    with ThreadPoolExecutor(len(NAMES) + 1) as clients:
        answers = list(clients.map(lambda i: ask(server, *asked[i]), order))
    for i, answer in zip(order, answers, strict=True):
        assert_same(answer, alone[i])
    assert sum(answer.cached for answer in answers) > 0


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_adapted_model(
    name: str | None, server: Server, tiny: Path, folders: dict[str, Path]
) -> None:
    prompt = tiny_passages(1, 300, 300, seed=5)[0]
    answer = ask(server, prompt, name, 8)

    def far_from(folder: Path | None) -> float:
        """How far the answer's log-probabilities are from those of transformers' model."""
        with torch.inference_mode():
            logits = adapted(tiny, folder)(torch.tensor([prompt + answer.tokens])).logits[0]
        expected = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
        theirs = expected.gather(1, torch.tensor(answer.tokens)[:, None]).flatten()
        return float((torch.tensor(answer.logprobs) - theirs).abs().mean())

    others = [folders.get(str(other)) for other in NAMES if other != name]
    own = far_from(folders[name] if name else None)
    assert own < 0.1
    assert own < min(map(far_from, others)) / 4


def _post(server: Server, path: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=60)


def test_an_adapter_that_comes_and_goes(server: Server, tmp_path: Path) -> None:
    prompt = tiny_passages(1, 300, 300, seed=6)[0]
    folder = adapter(tmp_path / "late", rank=2, seed=3, modules=("mlp.down_proj",))
    assert _post(server, "/load_lora_adapter", {"lora_name": "late", "lora_path": str(folder)}).ok
    first = ask(server, prompt, "late")
    assert_same(ask(server, prompt, "late"), first)
    assert _post(server, "/unload_lora_adapter", {"lora_name": "late"}).ok
    other = adapter(tmp_path / "other", rank=2, seed=4, modules=("mlp.down_proj",))
    assert _post(server, "/load_lora_adapter", {"lora_name": "late", "lora_path": str(other)}).ok
    again = ask(server, prompt, "late")
    assert again.cached == 0, "another adapter of that name finds no page of the one before"
    assert again.tokens != first.tokens


def test_an_adapter_that_is_not_there_is_refused(server: Server) -> None:
    body = {"input_ids": [5, 6, 7], "lora_path": "nobody", "sampling_params": {"max_new_tokens": 1}}
    answer = _post(server, "/generate", body)
    assert answer.status_code == 400
    assert "nobody" in answer.text
