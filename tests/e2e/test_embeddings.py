"""Embeddings of a decoder on a real server: prompts are prefilled over compressed pages, and found again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch

from bench.common.server import Server
from bench.stress import ENV
from tests.e2e.forked import Zygote
from tests.e2e.hits import PAGE
from tests.e2e.prompts import tiny_passages

POOL_TOKENS = 4096


@pytest.fixture(scope="module")
def server(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    flags = ("--is-embedding", "--max-total-tokens", str(POOL_TOKENS), "--chunked-prefill-size", "256")
    with zygote.serve("--model-path", str(tiny), *flags, "--leankv-tiers", "k8v8", env=ENV) as running:
        yield running


def embed(server: Server, prompt: list[int]) -> list[float]:
    answer = server.post("/v1/embeddings", {"model": "tiny", "input": prompt})
    vector: list[float] = answer["data"][0]["embedding"]
    return vector


def committed(server: Server) -> int:
    pages: int = server.info()["leankv"]["pages_committed"]
    return pages


def test_hits_equal_misses_in_any_company(server: Server) -> None:
    long, *others = tiny_passages(4, 300, 700, seed=1)
    prompts = [long, long[: len(long) - 50], *others]
    alone = []
    for prompt in prompts:
        server.flush()
        alone.append(embed(server, prompt))
    server.flush()
    before = committed(server)
    with ThreadPoolExecutor(3) as clients:
        assert list(clients.map(lambda prompt: embed(server, prompt), prompts)) == alone
    once = committed(server)
    assert once > before
    assert [embed(server, prompt) for prompt in prompts] == alone
    assert committed(server) == once, "a prompt that is cached was computed again"


def test_embeddings_are_those_of_the_model(server: Server, tiny: Path) -> None:
    from transformers import AutoModel

    prompt = tiny_passages(1, 500, 500, seed=2)[0]
    with torch.inference_mode():
        model = AutoModel.from_pretrained(tiny, dtype=torch.float32).eval()
        expected = model(torch.tensor([prompt])).last_hidden_state[0, -1]
    assert torch.cosine_similarity(torch.tensor(embed(server, prompt)), expected, dim=0) > 0.999


@pytest.mark.parametrize("route", ["/encode", "/v1/embeddings"])
def test_an_accuracy_is_refused(server: Server, route: str) -> None:
    """SGLang's requests of embeddings have no salt that could carry it."""
    body = {"model": "tiny", "input": "a", "text": "a", "leankv": {"profile": "small"}}
    answer = requests.post(server.url + route, json=body, timeout=60)
    assert answer.status_code == 400
    assert "leankv is not taken here; /generate," in answer.json()["error"]["message"]


def test_nothing_is_left_behind(server: Server) -> None:
    embed(server, tiny_passages(1, 400, 400, seed=3)[0])
    assert server.info()["leankv"]["tokens_held"] >= 400 // PAGE * PAGE
    server.flush()
    pages = server.info()["leankv"]
    assert pages["units_free"] == POOL_TOKENS
    assert pages["blocks_free"] == pages["blocks_total"]
    assert "leak" not in server.log_text()
