"""The request field ``leankv`` through the server: what it changes, what is shared, what is told back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from bench.common.server import Completion, Server
from tests.e2e.conftest import WORKERS
from tests.e2e.hits import a_miss_equal_to_its_hit
from tests.e2e.prompts import tiny_passages

LENGTH, PAGE = 430, 128
TOKEN_BYTES = 4 * 2 * 2 * 64 * 2
"""Of a token in 16 bits: 4 layers, keys and values, 2 KV heads of 64."""
FIELDS: dict[str, dict[str, Any] | None] = {
    "near-lossless": {"profile": "near-lossless"},
    "absent": None,
    "small": {"profile": "small"},
    "thresholds": {"alpha_high": 2.0, "alpha_low": 0.4},
}


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    """Three full pages and a bit."""
    return tiny_passages(1, LENGTH, LENGTH, seed=11)[0]


def _ask(plain: Server, prompt: list[int], field: Any, **fields: Any) -> Completion:
    return plain.generate(prompt, 8, fields={"leankv": field, **fields})


def test_an_accuracy_decides_tiers_and_is_told_back(plain: Server, prompt: list[int]) -> None:
    """And a hit is told what its miss was, whose pages were committed chunk by chunk."""
    shares, answers = {}, {}
    for name, field in FIELDS.items():
        answers[name] = a_miss_equal_to_its_hit(plain, prompt, 8, field)
        figures = plain.info()["leankv"]
        shares[name] = tuple(figures[f"share_{tier}"] for tier in ("high", "low", "pruned"))
        assert figures["tokens_held"] == 3 * PAGE
        # Three pages as the pool counts them, and the open page.
        kv = answers[name].kv
        assert kv["compressed_tokens"] == 3 * PAGE
        assert kv["bytes"] == figures["bytes_total"]
        assert kv["bytes_once_trimmed"] == figures["bytes_once_trimmed"]
        # Where all tokens are high there is no near part.
        assert (kv["bytes_once_trimmed"] < kv["bytes"]) == (name != "near-lossless")
        assert kv["bytes_open_page"] == figures["bytes_open_pages"] // (32 + 1)
        assert tuple(kv["tiers"].values()) == pytest.approx(shares[name], abs=1e-4)
        for when in ("", "_once_trimmed"):
            assert kv[f"ratio{when}"] == pytest.approx(figures[f"ratio{when}"])
            assert kv[f"ratio{when}"] == pytest.approx(3 * PAGE * TOKEN_BYTES / kv[f"bytes{when}"])
    assert shares["near-lossless"] == (1.0, 0.0, 0.0)
    assert 0.1 < shares["absent"][0] < 0.9
    assert shares["absent"][2] == 0.0
    # Four sinks of 384 tokens.
    assert shares["small"] == pytest.approx((4 / 384, 380 / 384, 0.0))
    assert shares["thresholds"][2] > 0.02
    said = ("profile", "alpha_high", "alpha_low")
    told = {name: {k: v for k, v in a.kv.items() if k in said} for name, a in answers.items()}
    assert told == {**FIELDS, "absent": {"profile": "balanced"}}
    assert len({tuple(a.logprobs) for a in answers.values()}) == len(FIELDS)


def test_prefixes_are_shared_between_equals_only(plain: Server, prompt: list[int]) -> None:
    def cached(field: Any, **fields: Any) -> int:
        return _ask(plain, prompt, field, **fields).cached

    plain.flush()
    assert [cached(field) for field in FIELDS.values()] == [0] * 4
    assert [cached(field) for field in FIELDS.values()] == [3 * PAGE] * 4
    # The same thresholds by other words: the server's own alpha_high is 1.
    assert cached({"profile": "balanced"}) == cached({"alpha_high": 1}) == 3 * PAGE
    assert cached({"alpha_low": 0.4, "alpha_high": 2}) == 3 * PAGE
    assert cached({"alpha_high": 2}) == 0
    # Beside a user's own keys.
    for own in ({"extra_key": "me"}, {"cache_salt": "me"}, {"cache_salt": "leankv:small;"}):
        assert [cached(FIELDS["small"], **own) for _ in range(2)] == [0, 3 * PAGE]
        assert cached(None, **own) == 0


def test_side_by_side_each_gets_what_it_gets_alone(plain: Server, prompt: list[int]) -> None:
    """Batches of different accuracy, which cross a page's end while decoding."""
    ids = prompt[: 2 * PAGE - 8]

    def ask(name: str) -> Completion:
        return plain.generate(ids, 24, fields={"leankv": FIELDS[name]})

    alone = {}
    for name in FIELDS:
        plain.flush()
        alone[name] = ask(name)
    plain.flush()
    with ThreadPoolExecutor(8) as pool:
        jobs = [(name, pool.submit(ask, name)) for name in [*FIELDS] * 2]
        for name, job in jobs:
            assert job.result().logprobs == alone[name].logprobs
            assert job.result().kv == alone[name].kv


def test_every_tokenizer_worker_knows_the_field(plain: Server, prompt: list[int]) -> None:
    for _ in range(2 * WORKERS):
        assert _ask(plain, prompt, {"profile": "near-lossless"}).kv["profile"] == "near-lossless"
        with pytest.raises(requests.HTTPError, match="400"):
            _ask(plain, prompt, {"profile": "tiny"})


def test_batches_and_samples_in_one_request(plain: Server, prompt: list[int]) -> None:
    plain.flush()
    body = {
        "input_ids": [prompt, prompt[::-1]],
        "sampling_params": {"max_new_tokens": 4, "temperature": 0.5, "n": 2, "custom_params": {"mine": [1]}},
        "leankv": FIELDS["small"],
    }
    answers = plain.post("/generate", body)
    assert [a["meta_info"]["leankv"]["profile"] for a in answers] == ["small"] * 4
    again = plain.post("/generate", body)
    assert [a["meta_info"]["cached_tokens"] for a in again] == [3 * PAGE] * 4
    assert plain.post("/generate", {**body, "leankv": None})[0]["meta_info"]["leankv"]["profile"] == "balanced"


def test_a_native_stream_tells_at_its_end(plain: Server, prompt: list[int]) -> None:
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}}
    whole = plain.post("/generate", {**body, "leankv": FIELDS["small"]})
    streamed = requests.post(plain.url + "/generate", json={**body, "leankv": FIELDS["small"], "stream": True})
    chunks = [json.loads(line[6:]) for line in streamed.iter_lines() if line.startswith(b"data: {")]
    assert len(chunks) > 3
    assert ["leankv" in chunk["meta_info"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["meta_info"]["leankv"] == whole["meta_info"]["leankv"]
    assert chunks[-1]["text"] == whole["text"]
