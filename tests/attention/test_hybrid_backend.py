"""Ours as the full-attention part of SGLang's backend for models with recurrent layers, beside a stand-in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.hybrid_linear_attn_backend import HybridLinearAttnBackend

from leankv_sglang.config import LeanKVConfig
from tests.attention.backendutil import create_backend, make_batch, make_layer, make_runner

HEADS, KV_HEADS, DIM, PAGE, LENGTH = 4, 2, 64, 64, 200
FULL, RECURRENT = 5, 2
"""Ids of layers; the pool knows the one full layer as its first."""


class StandIn(AttentionBackend):
    """A recurrent layer whose output is its values."""

    def __init__(self) -> None:
        super().__init__()
        self.planned = 0

    def supports_prefill_graph_extend(self) -> bool:
        """No."""
        return False

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Count."""
        self.planned += 1

    def forward_extend(self, *_: Any, v: Any, **__: Any) -> Any:
        """The values."""
        return v

    forward_decode = forward_extend


def _layer(number: int) -> Any:
    layer = make_layer(HEADS, KV_HEADS, DIM)
    layer.layer_id = number
    return layer


def _row(runner: Any) -> int:
    """A request's row, whose pages are the first of the pool."""
    row: int = runner.req_to_token_pool.alloc_rows(1)[0]
    table = runner.req_to_token_pool.req_to_token
    table[row] = torch.arange(table.shape[1], dtype=torch.int32) + PAGE
    return row


def _outputs(backend: Any, row: int, layer: Any, steps: list[int], qkv: list[torch.Tensor]) -> torch.Tensor:
    parts, done = [], 0
    for n in steps:
        backend.init_forward_metadata(make_batch([row], [done], [n], n == 1))
        forward = backend.forward_decode if n == 1 else backend.forward_extend
        q, k, v = (x[done : done + n].flatten(1) for x in qkv)
        parts.append(forward(q=q, k=k, v=v, layer=layer, forward_batch=SimpleNamespace(), save_kv_cache=True))
        done += n
    return torch.cat(parts)


def test_full_layers_are_ours_and_recurrent_ones_are_not(configure) -> None:  # type: ignore[no-untyped-def]
    configure(LeanKVConfig())
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(LENGTH, n, DIM, generator=generator).bfloat16() for n in (HEADS, KV_HEADS, KV_HEADS)]
    shape = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "page_size": PAGE, "batch_size": 1}
    alone = make_runner(**shape, max_len=4 * PAGE, dtype=torch.bfloat16)
    plain = _outputs(alone.leankv, _row(alone), _layer(0), [LENGTH], qkv)

    runner = make_runner(**shape, max_len=4 * PAGE, dtype=torch.bfloat16)
    pool = runner.token_to_kv_pool
    pool.model_layer_ids = (FULL,)
    runner.token_to_kv_pool = SimpleNamespace(full_kv_pool=pool)  # as HybridLinearKVPool holds it
    runner.req_to_token_pool._on_alloc_rows = None  # it knows the backend that make_runner made
    stand_in = StandIn()
    both = HybridLinearAttnBackend(create_backend(runner), stand_in, [FULL])
    got = _outputs(both, row := _row(runner), _layer(FULL), [100, 1, 27, 1, 71], qkv)
    assert torch.equal(got, plain)
    assert stand_in.planned == 5
    values = _outputs(both, row, _layer(RECURRENT), [LENGTH], qkv)
    assert torch.equal(values, qkv[2].flatten(1))
