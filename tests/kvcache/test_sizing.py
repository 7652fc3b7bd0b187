"""Open pages come out of the budget that SGLang divides into tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sglang.srt.runtime_context as context
import torch

from leankv_sglang.compression.build import make_layout
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache import sizing

LAYERS, PAGE, KV_HEADS, HEADS, DIM = 4, 128, 2, 6, 64
LAYOUT = make_layout(LeanKVConfig(), PAGE, KV_HEADS, DIM)
ROW = sizing.open_page_bytes(LAYOUT, LAYERS, HEADS, 4)


def kvc(monkeypatch: pytest.MonkeyPatch, requests: int | None, dp_size: int = 1) -> Any:
    """SGLang's configurator of a small float32 model."""
    monkeypatch.setattr(context, "get_schedule", lambda: SimpleNamespace(page_size=PAGE, max_running_requests=requests))
    monkeypatch.setattr(context, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1))
    monkeypatch.setattr(sizing, "required_config", LeanKVConfig)
    model = SimpleNamespace(
        get_num_kv_heads=lambda ranks: KV_HEADS,
        get_num_attention_heads=lambda ranks: HEADS,
        head_dim=DIM,
        dtype=torch.float32,
    )
    return SimpleNamespace(
        model_config=model,
        layer_info=SimpleNamespace(num_effective_layers=LAYERS),
        attn_dp_size=dp_size,
        resolve_max_num_reqs=lambda tokens: tokens // 1000,
    )


def test_every_row_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang keeps one more than there may be requests."""
    assert sizing.memory_for_pages(kvc(monkeypatch, 8), 1 << 30) == (1 << 30) - 9 * ROW
    assert sizing.memory_for_pages(kvc(monkeypatch, 8, dp_size=2), 1 << 30) == (1 << 30) - 5 * ROW


def test_without_a_limit_as_many_requests_as_sglang_makes_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    some = kvc(monkeypatch, None)
    tokens = (1 << 30) // sizing.bytes_per_token(some, LAYERS)
    assert tokens > 1000
    assert sizing.memory_for_pages(some, 1 << 30) == (1 << 30) - (tokens // 1000 + 1) * ROW


def test_no_room_for_pages_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeanKVError, match=r"open pages of 8 requests take .* lower --max-running-requests"):
        sizing.memory_for_pages(kvc(monkeypatch, 8), 9 * ROW)
