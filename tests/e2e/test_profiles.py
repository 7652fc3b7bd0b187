"""A server with the profile that comes with the package: its points, and that a hit still equals a miss."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from prompts import passages

from bench.server import Server, serve

PAGE, POINTS = 128, ("lossless", "balanced", "small")


@pytest.fixture(scope="module")
def profiled() -> Iterator[Server]:
    with serve("--leankv-profile", "balanced", "--max-total-tokens", "16384") as running:
        yield running


def test_the_points_are_what_a_request_may_name(profiled: Server) -> None:
    prompt = passages(1, 900, 900, seed=5)[0]
    pruned = {}
    for name in (None, *POINTS):
        profiled.flush()
        field = {"leankv": {"profile": name}} if name else {}
        miss, hit = (profiled.generate(prompt, 16, fields=field) for _ in range(2))
        assert (miss.cached, hit.cached) == (0, 7 * PAGE)
        assert (hit.tokens, hit.logprobs) == (miss.tokens, miss.logprobs)
        assert miss.kv["profile"] == (name or "balanced")
        pruned[name] = profiled.info()["leankv"]["share_pruned"]
    assert 0 < pruned["lossless"] < pruned["balanced"] == pruned[None] < pruned["small"]
    assert "predictor" in profiled.info()["leankv"]["config"]


def test_a_hit_equals_a_miss_in_a_batch(profiled: Server) -> None:
    prompts = passages(4, 300, 1200, seed=6)
    profiled.flush()
    misses = [profiled.generate(prompt, 12) for prompt in prompts]
    hits = [profiled.generate(prompt, 12) for prompt in reversed(prompts)][::-1]
    for miss, hit in zip(misses, hits, strict=True):
        assert hit.cached > 0
        assert (hit.tokens, hit.logprobs) == (miss.tokens, miss.logprobs)


def test_a_name_that_the_profile_lacks_is_refused(profiled: Server) -> None:
    body = {"text": "a", "leankv": {"profile": "tiny"}}
    refusal = requests.post(f"{profiled.url}/generate", json=body, timeout=60)
    assert refusal.status_code == 400
    assert "lossless, balanced, small" in refusal.text
