"""Layers with a sliding window on a GPU: SGLang's own attention backend, over its window pool."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class StockWindows:
    """SGLang's backend for the device, which is asked for the layers with a window alone.

    Args:
        runner: SGLang's model runner.
        layers: ids of the layers with a window.
    """

    def __init__(self, runner: Any, layers: frozenset[int]) -> None:
        from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

        self.layers = layers
        # Of SGLang's backends the one that takes head sizes, caps and sinks alike, and is deterministic when asked to.
        self.backend = ATTENTION_BACKENDS["triton"](runner)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan a forward."""
        self.backend.init_forward_metadata(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Allocate what graphs read."""
        self.backend.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Plan a capture or a replay."""
        self.backend.init_forward_metadata_out_graph(forward_batch, in_capture)

    def forward_extend(self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save: bool, **how: Any) -> Tensor:
        """Prefill chunks and mixed batches."""
        out: Tensor = self.backend.forward_extend(q, k, v, layer, batch, save_kv_cache=save, **how)
        return out

    def forward_decode(self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save: bool, **how: Any) -> Tensor:
        """One token per request."""
        out: Tensor = self.backend.forward_decode(q, k, v, layer, batch, save_kv_cache=save, **how)
        return out
