"""Which CUDA graphs are left on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.arg_groups import overrides
from sglang.srt.model_executor.cuda_graph_config import Backend, CudaGraphConfig, PhaseConfig

from leankv_kernels import ops
from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.plugin.graphs import settle_graphs


def model(query_heads: int = 32) -> Any:
    """Of so many query heads and eight KV heads, on all ranks."""
    return SimpleNamespace(
        get_total_num_kv_heads=lambda: 8,
        get_num_attention_heads=lambda ranks: query_heads // ranks,
        head_dim=128,
        v_head_dim=128,
    )


STOCK = (Backend.FULL, Backend.BREAKABLE)


def settled(
    monkeypatch: pytest.MonkeyPatch, device: str, kernels: str, asked: tuple[str, str] = STOCK, heads: int = 32
) -> Any:
    """Backends of decode and prefill, as left."""
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig(kernels=kernels).to_json())
    decode, prefill = (PhaseConfig(backend=name) for name in asked)
    cfg = SimpleNamespace(
        device=device, page_size=128, tp_size=2, cuda_graph_config=CudaGraphConfig(decode=decode, prefill=prefill)
    )
    found = [cfg.cuda_graph_config]
    monkeypatch.setattr(
        overrides, "declare_resolution", lambda _args, _name, cuda_graph_config: found.append(cuda_graph_config)
    )
    settle_graphs(None, cfg, model(heads))
    return found[-1].decode.backend, found[-1].prefill.backend


def test_on_a_gpu_decode_and_breakable_prefill_graphs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, "cuda", "cuda") == STOCK
    monkeypatch.setattr(ops, "_best", lambda device, layout, group: "cuda")
    monkeypatch.delenv(ops.BACKEND_ENV, raising=False)
    assert settled(monkeypatch, "cuda", "auto") == STOCK


def test_kernels_that_cannot_be_captured_decode_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, "cuda", "triton") == (Backend.DISABLED, Backend.BREAKABLE)


def test_a_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, "cpu", "auto") == (Backend.DISABLED, Backend.DISABLED)


def test_graphs_of_whole_prefills_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeanKVError, match="full CUDA graphs of prefills are not supported"):
        settled(monkeypatch, "cuda", "cuda", (Backend.FULL, Backend.FULL))


def test_kernels_that_do_not_take_the_query_heads_are_refused_whether_in_graphs_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says = (
        r"LeanKV has no kernels to serve with: .* up to 16 query heads per KV head, .* not 17: use the triton backend\."
    )
    for device, kernels, decode in (("cuda", "cuda", Backend.DISABLED), ("cpu", "cuda-emulated", Backend.FULL)):
        with pytest.raises(LeanKVError, match=says):
            settled(monkeypatch, device, kernels, (decode, Backend.BREAKABLE), heads=8 * 17)
    assert settled(monkeypatch, "cuda", "cuda", heads=8 * 34) == STOCK
    assert settled(monkeypatch, "cuda", "triton", heads=8 * 17) == (Backend.DISABLED, Backend.BREAKABLE)
