"""What the server says its pages take follows from the layout."""

from __future__ import annotations

import pytest

from bench.common.server import Server
from tests.e2e.prompts import tiny_passages

LAYERS, HEADS = 4, 2
"""Of the tiny model; heads have 64 channels."""


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
