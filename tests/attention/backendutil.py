"""Runners, layers and batches for the real backend, without a server."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.test.kits.attention_unittest.attention_methods import dense_attention as kit

from leankv_sglang.attention.backend import LeanKVBackend


def create_backend(runner: Any) -> Any:
    """The backend as SGLang's registry creates it, also kept as ``runner.leankv``."""
    runner.leankv = LeanKVBackend(runner)
    return runner.leankv


def make_runner(
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    batch_size: int,
    max_len: int,
    dtype: torch.dtype,
    v_head_dim: int | None = None,
) -> Any:
    """The kit's runner around our pool and backend, as ``runner.leankv``."""
    case = kit.DenseAttentionCase(
        "random", "leankv", ForwardMode.EXTEND, heads, kv_heads, page_size, (0,) * batch_size, (1,) * batch_size
    )
    config = kit.TinyModelConfig(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, hidden_size=64, context_len=max_len
    )
    with mock.patch.object(kit, "MHATokenToKVPool", partial(kit.MHATokenToKVPool, v_head_dim=v_head_dim)):
        runner = kit.MockModelRunner(
            case=case, model_config=config, dtype=dtype, device="cpu", max_context_len=max_len, head_dim=head_dim
        )
    create_backend(runner)
    return runner


def make_layer(heads: int, kv_heads: int, head_dim: int, v_head_dim: int = -1) -> Any:
    """An attention layer as models have it; values are as wide as keys by default."""
    return kit.RadixAttention(heads, head_dim, head_dim**-0.5, kv_heads, layer_id=0, v_head_dim=v_head_dim)


def make_batch(rows: list[int], prefix: list[int], extend: list[int], decode: bool) -> Any:
    """The fields of a ForwardBatch that the backend reads."""
    return SimpleNamespace(
        forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
        req_pool_indices=torch.tensor(rows),
        req_pool_indices_cpu=torch.tensor(rows),
        seq_lens_cpu=torch.tensor([p + e for p, e in zip(prefix, extend, strict=True)]),
        extend_prefix_lens_cpu=prefix,
        extend_seq_lens_cpu=extend,
    )
