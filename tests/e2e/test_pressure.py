"""A pool that is too small: requests are evicted, retracted and aborted, and nothing is lost."""

from __future__ import annotations

from prompts import OWN_TEXT

from bench.server import serve
from bench.stress import ENV, stress


def test_requests_survive_a_pool_too_small() -> None:
    # Mixed batches and small chunks too: prefill beside decode, pages committed across chunks.
    mixed = ("--enable-mixed-chunk", "--chunked-prefill-size", "256")
    tight = ("--max-total-tokens", "1536", "--schedule-conservativeness", "0.05", "--max-running-requests", "12")
    with serve(*mixed, *tight, env=ENV) as server:
        row = stress(server, count=24, clients=24, longest=120, new_tokens=200, text=OWN_TEXT)
    assert row["lost"] == "none"
    assert row["answered"] >= 15
    assert row["retractions"] > 0
    assert row["leaks"] == 0
    assert row["blocks_after_flush"] == 0
