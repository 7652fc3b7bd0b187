"""The server says truthfully what it holds."""

from __future__ import annotations

import re

import pytest
import requests

from bench.common.server import Server
from tests.e2e.prompts import passages, tiny_passages

LAYERS, HEADS = 4, 2
"""Of the tiny model; heads have 64 channels."""


def _gauges(server: Server) -> dict[str, float]:
    text = requests.get(server.url + "/metrics", timeout=60).text
    found = {}
    for name, labels, value in re.findall(r"^leankv:(\w+)(\{[^}]*\})? (\S+)$", text, re.MULTILINE):
        part = re.search(r'part="(\w+)"', labels or "")
        found[name + (f"_{part[1]}" if part else "")] = float(value)
    return found


def test_bytes_follow_from_the_layout(plain: Server) -> None:
    plain.flush()
    plain.generate(tiny_passages(1, 1000, 1000, seed=7)[0], 32)
    figures = plain.info()["leankv"]
    assert figures["tokens_held"] == 1000 // 128 * 128 + 128  # 1,032 tokens: eight full pages
    held = sum(figures["bytes"].values())
    assert held == figures["bytes_total"]
    # 104 bytes a token and head, all tiers together, plus 1,600 of headers and padding a record.
    records = figures["tokens_held"] // 128 * LAYERS
    payload = records * 128 * HEADS * 104
    assert payload < held < payload + records * 1600
    assert figures["ratio"] == pytest.approx(figures["tokens_held"] * LAYERS * HEADS * 64 * 2 * 2 / held)
    assert figures["blocks_free"] == figures["blocks_total"] - (held - figures["bytes"]["table"]) // 512


def test_bytes_by_head_add_up(plain: Server) -> None:
    plain.flush()
    assert plain.info()["leankv"]["bytes_by_head"] == [[0] * HEADS] * LAYERS
    plain.generate(tiny_passages(1, 1000, 1000, seed=7)[0], 32)
    figures = plain.info()["leankv"]
    heads = figures["bytes_by_head"]
    assert [len(layer) for layer in heads] == [HEADS] * LAYERS
    # Beside codes and scales a head has a centre of 128 bytes a page, and runs padded to whole quads and 16 bytes.
    parts, records = figures["bytes"], LAYERS * figures["tokens_held"] // 128
    least = sum(parts[part] for part in ("high", "mid", "low", "near")) + records * HEADS * 128
    total = sum(map(sum, heads))
    assert least < total < least + records * HEADS * 500
    assert total < figures["bytes_total"] - parts["table"] - (parts["header"] - records * HEADS * 128)
    # Thresholds are the same for all heads, and yet these keep tokens of different worth.
    assert max(map(max, heads)) > min(map(min, heads)) > 0


def test_gauges_agree_with_server_info(server: Server) -> None:
    server.flush()
    server.generate(passages(1, 300, 300, seed=8)[0], 100)
    figures, gauges = server.info()["leankv"], _gauges(server)
    # Gauges are written when SGLang logs; the pages of the finished request may come after.
    assert {"tokens_held", "ratio", "pages_committed", "blocks_free", "bytes_allocated"} <= set(gauges)
    assert gauges["bytes_allocated"] == figures["bytes_allocated"]
    assert gauges["bytes_high"] > gauges["bytes_header"] > 0
    assert gauges["ratio"] == pytest.approx(figures["ratio"], rel=0.05)


def test_starts_fast_and_quietly(server: Server) -> None:
    log = server.log_text()
    assert "LeanKV beneath SGLang" in log
    assert "k8v4,k4v4,k4v2" in log
    assert "thresholds from SmolLM2-135M-Instruct lossless" in log
    assert "Ignore import error" not in log
    assert "server_args={" not in log
