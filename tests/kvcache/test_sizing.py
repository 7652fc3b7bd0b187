"""Open pages, spare ones and what commits take come out of the budget that SGLang divides into tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sglang.srt.runtime_context as context
import torch

from leankv_kernels import Ops, get_ops
from leankv_sglang.compression.build import make_layout
from leankv_sglang.compression.commit_memory import COMMIT_BYTES
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache import sizing
from leankv_sglang.kvcache.open_pages import OpenPages

LAYERS, PAGE, KV_HEADS, HEADS, DIM, CONTEXT = 4, 128, 2, 6, 64, 1 << 20
LAYOUT = make_layout(LeanKVConfig(), PAGE, KV_HEADS, DIM)
ROW = sizing.open_page_bytes(LAYOUT, LAYERS, HEADS, 4)
ONE = LAYOUT.num_kv_heads * PAGE * (DIM * 64 + 128) + HEADS * PAGE * 24
"""What torch takes to commit one page of one layer."""
SPARE = ROW // LAYERS
"""A spare page, of one layer."""


def kvc(
    monkeypatch: pytest.MonkeyPatch, requests: int | None, dp_size: int = 1, chunk: int = 1024, ops: Ops | None = None
) -> Any:
    """SGLang's configurator of a small float32 model."""
    schedule = SimpleNamespace(
        page_size=PAGE, max_running_requests=requests, chunked_prefill_size=chunk, max_prefill_tokens=2048
    )
    monkeypatch.setattr(context, "get_schedule", lambda: schedule)
    monkeypatch.setattr(sizing, "kernels_for", lambda *_: ops or get_ops("cpu", "reference"))
    monkeypatch.setattr(context, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1))
    monkeypatch.setattr(sizing, "required_config", LeanKVConfig)
    model = SimpleNamespace(
        get_total_num_kv_heads=lambda: KV_HEADS,
        get_num_attention_heads=lambda ranks: HEADS,
        head_dim=DIM,
        v_head_dim=DIM,
        dtype=torch.float32,
        context_len=CONTEXT,
    )
    return SimpleNamespace(
        device="cpu",
        model_config=model,
        layer_info=SimpleNamespace(num_effective_layers=LAYERS),
        attn_dp_size=dp_size,
        resolve_max_num_reqs=lambda tokens: tokens // 1000,
    )


def test_every_row_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang keeps one more than there may be requests."""
    for dp_size, rows in ((1, 9), (2, 5)):
        left = sizing.memory_for_pages(kvc(monkeypatch, 8, dp_size), 1 << 30)
        assert left == (1 << 30) - rows * ROW - ((1024 - 2 * rows) // PAGE + rows) * SPARE - rows * LAYERS * ONE


@pytest.mark.parametrize(
    ("chunk", "pages"),
    [
        (1024, 3 * LAYERS),  # what a decode step fills, of all layers
        (1 << 14, 128 + 3),  # what a chunk fills, of one
        (1 << 17, COMMIT_BYTES // ONE),
        (-1, COMMIT_BYTES // ONE),
    ],
)
def test_the_largest_commit_is_paid_for(monkeypatch: pytest.MonkeyPatch, chunk: int, pages: int) -> None:
    left = sizing.memory_for_pages(kvc(monkeypatch, 2, chunk=chunk), 1 << 32)
    spare = ((chunk if chunk > 0 else CONTEXT) - 6) // PAGE + 3
    assert left == (1 << 32) - 3 * ROW - spare * SPARE - pages * ONE


def test_cuda_kernels_take_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    some = kvc(monkeypatch, 2, ops=get_ops("cpu", "cuda-emulated"))
    taken = (1 << 30) - 3 * ROW - ((1024 - 6) // PAGE + 3) * SPARE - sizing.memory_for_pages(some, 1 << 30)
    assert 0 < taken < 3 * LAYERS * KV_HEADS * PAGE * 2


def test_without_a_limit_as_many_requests_as_sglang_makes_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    some = kvc(monkeypatch, None)
    tokens = (1 << 30) // sizing.bytes_per_token(some, LAYERS)
    assert tokens > 1000
    rows = tokens // 1000 + 1
    pages, spare = min(rows * LAYERS, COMMIT_BYTES // ONE), 512  # for each two tokens of the chunk
    assert sizing.memory_for_pages(some, 1 << 30) == (1 << 30) - rows * ROW - spare * SPARE - pages * ONE


def test_values_of_another_width_are_paid_for_as_wide_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a page's blocks, of open pages and spare ones, and of what 16 bits take; open pages take that very much."""
    some = kvc(monkeypatch, 8, ops=get_ops("cpu", "cuda-emulated"))
    price, left = sizing.bytes_per_token(some, LAYERS), sizing.memory_for_pages(some, 1 << 30)
    some.model_config.v_head_dim = DIM // 2
    narrow = make_layout(LeanKVConfig(), PAGE, KV_HEADS, DIM, DIM // 2)
    assert sizing.bytes_per_token(some, LAYERS) == -(-sizing.page_bytes(narrow, LAYERS) // PAGE) < price
    pages = 9 * LAYERS + (1024 - 18) // PAGE + 9
    assert sizing.memory_for_pages(some, 1 << 30) == left + pages * PAGE * KV_HEADS * DIM // 2 * 4
    assert sizing.model_dtype_bytes_per_token(narrow, LAYERS) == 2 * LAYERS * KV_HEADS * (DIM + DIM // 2)
    heads = KV_HEADS, DIM, HEADS
    rows = OpenPages(LAYERS, 9, PAGE, *heads, torch.float32, "cpu", v_head_dim=DIM // 2)
    assert rows.row_nbytes() == sizing.open_page_bytes(narrow, LAYERS, HEADS, 4)


def test_no_room_for_pages_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeanKVError, match=r"open pages of 8 requests, and what .* take .* lower --max-running"):
        sizing.memory_for_pages(kvc(monkeypatch, 8), 9 * ROW + 1000)
