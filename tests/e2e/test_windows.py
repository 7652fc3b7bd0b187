"""Models with sliding windows and capped logits on a real server: what holds of full layers holds of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.stress import ENV, stress
from tests.e2e.forked import Zygote
from tests.e2e.hits import a_miss_equal_to_its_hit, assert_hits_equal_misses
from tests.e2e.prompts import tiny_passages
from tests.models_served import MODELS

ROOM = ("--max-total-tokens", "2048", "--swa-full-tokens-ratio", "0.9", "--max-running-requests", "12")
MIXED = ("--enable-mixed-chunk", "--chunked-prefill-size", "256", "--schedule-conservativeness", "0.05")


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["gemma2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_windows_under_pressure(name: str, zygote: Zygote, tmp_path: Path) -> None:
    """Chunks, mixed batches, trimming, eviction of windows, retraction and flush; SGLang's strict checks are on."""
    model = MODELS[name].build(tmp_path).served
    with zygote.serve("--model-path", str(model), *ROOM, *MIXED, env=ENV) as server:
        a_miss_equal_to_its_hit(server, tiny_passages(1, 600, 600, seed=1)[0], 150)
        assert_hits_equal_misses(server, tiny_passages(4, 130, 700, seed=2), 60)
        row = stress(server, tiny_passages(24, 10, 400), clients=12, new_tokens=400, abort_within=2.0)
        pages = server.info()["leankv"]
    assert row["lost"] == "none"
    assert row["answered"] >= 12
    assert row["retractions"] > 0
    assert row["leaks"] == 0
    assert row["blocks_after_flush"] == 0
    assert pages["pages_trimmed"] > 0
