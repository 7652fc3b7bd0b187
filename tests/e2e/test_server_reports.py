"""The server says truthfully what it holds."""

from __future__ import annotations

import re

import pytest
import requests

from bench.common.server import Server
from tests.e2e.prompts import passages


def _gauges(server: Server) -> dict[str, float]:
    text = requests.get(server.url + "/metrics", timeout=60).text
    found = {}
    for name, labels, value in re.findall(r"^leankv:(\w+)(\{[^}]*\})? (\S+)$", text, re.MULTILINE):
        part = re.search(r'part="(\w+)"', labels or "")
        found[name + (f"_{part[1]}" if part else "")] = float(value)
    return found


def test_gauges_agree_with_server_info(server: Server) -> None:
    server.flush()
    server.generate(passages(1, 140, 140, seed=8)[0], 45)
    figures, gauges = server.info()["leankv"], _gauges(server)
    # Gauges are written when SGLang logs; the pages of the finished request may come after.
    assert {"held_tokens", "compression_ratio", "committed_pages_total", "free_blocks", "allocated_bytes"} <= set(
        gauges
    )
    assert gauges["allocated_bytes"] == figures["bytes_allocated"]
    assert gauges["pages_bytes_high"] > gauges["pages_bytes_header"] > 0
    assert gauges["compression_ratio"] == pytest.approx(figures["ratio"], rel=0.05)


def test_counters_count(server: Server) -> None:
    """What only grows is a counter for Prometheus, so that its rates can be asked for."""
    before = _gauges(server)
    server.flush()
    server.generate(passages(1, 300, 300, seed=9)[0], 45)
    after = _gauges(server)
    assert after["committed_pages_total"] >= before["committed_pages_total"] + 2
    assert "# TYPE leankv:trimmed_pages_total counter" in requests.get(server.url + "/metrics", timeout=60).text


def test_starts_fast_and_quietly(server: Server) -> None:
    log = server.log_text()
    assert "LeanKV beneath SGLang" in log
    assert "k8v4,k4v4,k4v2" in log
    assert "thresholds from SmolLM2-135M-Instruct near-lossless" in log
    assert re.search(r"tokens when all were just committed\n +some [\d,]+ tokens once trimmed \(4\.\dx 16 bits\)", log)
    assert "low performance expected" not in log
    assert "Ignore import error" not in log
    assert "server_args={" not in log
