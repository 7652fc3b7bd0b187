"""A pool that is too small: requests are evicted, retracted and aborted, and nothing is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.common.server import Completion, Server, serve
from bench.company import company
from bench.stress import ENV, stress
from tests.e2e.prompts import tiny_passages

FIGURES = ("bytes", "ratio")
"""What trimming changes."""


def test_requests_survive_a_pool_too_small(tiny: Path) -> None:
    # Mixed batches and small chunks too: prefill beside decode, pages committed across chunks.
    mixed = ("--enable-mixed-chunk", "--chunked-prefill-size", "256")
    tight = ("--max-total-tokens", "1536", "--schedule-conservativeness", "0.05", "--max-running-requests", "12")
    with serve("--model-path", str(tiny), *mixed, *tight, env=ENV) as server:
        # About twice what the pool holds at a time: with half as much, some runs retracted none.
        row = stress(server, tiny_passages(24, 10, 120), clients=24, new_tokens=400, abort_within=2.0)
        _assert_retracted_requests_keep_their_accuracy(server)
        _assert_company_changes_no_answer(server)
    assert row["lost"] == "none"
    assert row["answered"] >= 15
    assert row["retractions"] > 0
    assert row["leaks"] == 0
    assert row["blocks_after_flush"] == 0


def _assert_company_changes_no_answer(server: Server) -> None:
    """Beside neighbours that join, leave and are aborted, some answers being retracted and begun anew."""
    rows = company(server, tiny_passages(1, 200, 200, seed=4), 10, ["four answers"], quiet=True)
    for row in rows:
        assert row["neighbours_answered"] > 0
        assert row["bit_equal"] == row["answers"] == 14, row


def _assert_retracted_requests_keep_their_accuracy(server: Server) -> None:
    prompt = tiny_passages(1, 100, 100, seed=9)[0]
    accuracies = [{"profile": "near-lossless"}, None, {"alpha_high": 1.5, "alpha_low": 0.5}]

    def ask(accuracy: dict[str, Any] | None, salt: str) -> Completion:
        length = {"ignore_eos": False, "min_new_tokens": 140}
        return server.generate(prompt, 140, fields={"leankv": accuracy, "cache_salt": salt}, **length)

    before = server.retractions()
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(ask, accuracy, str(i)) for i in range(4) for accuracy in accuracies]
        together = [job.result() for job in jobs]
    assert server.retractions() > before
    server.flush()
    for i, accuracy in enumerate(accuracies):
        alone = ask(accuracy, "")
        for answer in together[i::3]:
            assert answer.logprobs == alone.logprobs
            # Pages that were trimmed meanwhile cost less.
            assert answer.kv["bytes"] <= alone.kv["bytes"]
            assert [v for k, v in answer.kv.items() if k not in FIGURES] == [
                v for k, v in alone.kv.items() if k not in FIGURES
            ]
