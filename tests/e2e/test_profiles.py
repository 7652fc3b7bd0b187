"""The server as it starts by default, on the profile that comes with the package: its points, and that a hit still
equals a miss."""

from __future__ import annotations

import requests

from bench.common.server import Server
from tests.e2e.prompts import passages

PAGE, POINTS = 128, ("lossless", "balanced", "small")


def test_the_points_are_what_a_request_may_name(server: Server) -> None:
    prompt = passages(1, 900, 900, seed=5)[0]
    pruned = {}
    for name in (None, *POINTS):
        server.flush()
        field = {"leankv": {"profile": name}} if name else {}
        miss, hit = (server.generate(prompt, 16, fields=field) for _ in range(2))
        assert (miss.cached, hit.cached) == (0, 7 * PAGE)
        assert (hit.tokens, hit.logprobs) == (miss.tokens, miss.logprobs)
        assert miss.kv["profile"] == (name or "lossless")
        pruned[name] = server.info()["leankv"]["share_pruned"]
    assert 0 < pruned[None] == pruned["lossless"] < pruned["balanced"] < pruned["small"]
    assert "predictor" in server.info()["leankv"]["config"]


def test_a_hit_equals_a_miss_in_a_batch(server: Server) -> None:
    prompts = passages(4, 300, 1200, seed=6)
    server.flush()
    misses = [server.generate(prompt, 12) for prompt in prompts]
    hits = [server.generate(prompt, 12) for prompt in reversed(prompts)][::-1]
    for miss, hit in zip(misses, hits, strict=True):
        assert hit.cached > 0
        assert (hit.tokens, hit.logprobs) == (miss.tokens, miss.logprobs)


def test_a_name_that_the_profile_lacks_is_refused(server: Server) -> None:
    body = {"text": "a", "leankv": {"profile": "tiny"}}
    refusal = requests.post(f"{server.url}/generate", json=body, timeout=60)
    assert refusal.status_code == 400
    assert "lossless, balanced, small" in refusal.text
