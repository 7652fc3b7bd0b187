"""Where nobody said how large the pool of windows is, it is as large as requests want, and pages get the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from leankv_sglang.kvcache.hybrid.sizes import END_EVERY, SGLANG_RATIO, WindowNeed
from leankv_sglang.plugin import window_room

PAGE, WINDOW, CHUNK = 128, 512, 4096
UNIT, WINDOW_BYTES, BUDGET = 2_000, 20_000, 4 << 30
"""Bytes of a unit of full layers and of a token of windows, as of Gemma 3 1B, and of both pools."""


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``settle_tokens`` with pages that take ``UNIT`` bytes a token."""

    def tokens(*_: Any, window_tokens: float = 0.0, windows: int = 0) -> int:
        pages = (BUDGET - windows * WINDOW_BYTES) // ((UNIT + window_tokens * WINDOW_BYTES) * PAGE)
        return max(int(pages), 1) * PAGE

    monkeypatch.setattr(window_room, "default_max_total_tokens", tokens)
    monkeypatch.setattr(window_room, "window_token_bytes", lambda model, ranks: WINDOW_BYTES * bool(model.window))

    def settled(requests: int = 4, window: int | None = WINDOW, device: str = "cpu", **given: Any) -> dict[str, Any]:
        stated = {"max_total_tokens": None, "mem_fraction_static": None, "swa_full_tokens_ratio": None, **given}
        cfg = SimpleNamespace(
            device=device,
            page_size=PAGE,
            tp_size=1,
            dp_size=1,
            chunked_prefill_size=CHUNK,
            max_running_requests=requests,
        )
        model = SimpleNamespace(hf_config=SimpleNamespace(sliding_window=window), window=window, context_len=32768)
        ratio = stated["swa_full_tokens_ratio"] or SGLANG_RATIO
        return window_room.settle_tokens(SimpleNamespace(**stated), cfg, model, ratio)

    return settled


def held(fields: dict[str, Any]) -> int:
    """Bytes of both pools."""
    windows = fields.get("swa_full_tokens_ratio", SGLANG_RATIO) * WINDOW_BYTES
    return int(fields["max_total_tokens"] * (UNIT + windows))


def test_a_few_requests_leave_their_windows_memory_to_pages(settle: Any) -> None:
    few, many = settle(4), settle(256)
    assert few["max_total_tokens"] > 1.5 * many["max_total_tokens"]
    # Never more windows than SGLang would have.
    assert "swa_full_tokens_ratio" not in many
    assert all(held(fields) <= BUDGET * 1.01 for fields in (few, many))


@pytest.mark.parametrize("requests", [1, 4, 32])
def test_what_is_wanted_is_there(settle: Any, requests: int) -> None:
    fields = settle(requests, max_total_tokens=1 << 20)
    windows = int((1 << 20) * fields["swa_full_tokens_ratio"]) // PAGE * PAGE
    each = (WINDOW + PAGE) * (4 * requests + 1)
    assert windows >= requests * (WINDOW + PAGE) + CHUNK + each
    # And an end for each 2,048 units.
    assert windows >= (1 << 20) / END_EVERY * (WINDOW + PAGE)
    assert fields["max_total_tokens"] == 1 << 20


def test_a_small_pool_has_what_sglang_would_give_it(settle: Any) -> None:
    assert settle(max_total_tokens=8192) == {}
    assert WindowNeed(WINDOW, PAGE, 4, CHUNK).ratio(8192) == SGLANG_RATIO


def test_what_was_said_stays(settle: Any) -> None:
    assert settle(swa_full_tokens_ratio=0.5, max_total_tokens=1 << 20) == {}
    assert set(settle(swa_full_tokens_ratio=0.5)) == {"max_total_tokens"}
    assert settle(mem_fraction_static=0.5) == {}
    assert settle(device="cuda") == {}


def test_models_without_windows_are_sized_as_before(settle: Any) -> None:
    assert set(settle(window=None)) == {"max_total_tokens"}
    assert settle(window=None, max_total_tokens=4096) == {}
