"""Layers with a sliding window: raw keys and values in SGLang's window pool, read by position alone.

On a CPU by our own kernel: SGLang's (``torch_native``) looks for windows by slots of the full layers, does not know
capped logits or sinks, and gives a token other bits in decode than in prefill. On a GPU by SGLang's own backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leankv_kernels import Ops
from leankv_sglang.attention.layers import by_heads, by_rows
from leankv_sglang.attention.stock_windows import StockWindows
from leankv_sglang.kvcache.hybrid.pools import WindowPools

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def create_windows(runner: Any) -> RawWindows | StockWindows | None:
    """What reads the windows of a runner's model; None where it has none."""
    pools = runner.token_to_kv_pool
    if not isinstance(pools, WindowPools):
        return None
    if torch.device(pools.device).type == "cpu":
        return RawWindows(pools, runner.req_to_token_pool.req_to_token, pools.full_kv_pool.ops)
    return StockWindows(runner, window_layers(pools))


def window_layers(pools: WindowPools) -> frozenset[int]:
    """Ids of the layers whose keys are in the window pool."""
    return frozenset(layer for layer, (_, slides) in pools.layers_mapping.items() if slides)


class RawWindows:
    """By our kernel, whose bits are those of position, query and what it sees alone.

    Args:
        pools: of the model.
        req_to_token: SGLang's table of slots of full layers, int32 ``[rows, tokens]``.
        ops: the kernels.
    """

    def __init__(self, pools: WindowPools, req_to_token: Tensor, ops: Ops) -> None:
        self.layers = window_layers(pools)
        self.pools, self._rows, self._ops = pools, req_to_token, ops
        self._written = torch.empty(0, dtype=torch.int64)
        self._requests: list[tuple[int, int, int]] = []
        self._seen: dict[int, tuple[Tensor, list[int], list[int], list[int]]] = {}

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Note what the forward writes, and of which rows."""
        mode = forward_batch.forward_mode
        self._seen.clear()
        self._requests = []
        if mode.is_idle():
            return
        rows = forward_batch.req_pool_indices.tolist()
        if mode.is_decode():
            ends = forward_batch.seq_lens_cpu.tolist()
            before = [end - 1 for end in ends]
        else:
            before = list(forward_batch.extend_prefix_lens_cpu)
            ends = [b + n for b, n in zip(before, forward_batch.extend_seq_lens_cpu, strict=True)]
        self._requests = list(zip(rows, before, ends, strict=True))
        tokens = sum(ends) - sum(before)
        self._written = self.pools.translate_loc_from_full_to_swa(forward_batch.out_cache_loc[:tokens].long())

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Nothing: a CPU captures no graphs."""

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool) -> None:
        """Nothing, likewise."""

    def _slots(self, window: int) -> tuple[Tensor, list[int], list[int], list[int]]:
        """Slots that the forward's queries see through such a window, and where each request begins in queries, slots
        and positions."""
        if window not in self._seen:
            parts, queries, slots, starts = [torch.empty(0, dtype=torch.int64)], [0], [0], []
            for row, before, end in self._requests:
                start = max(before - window, 0) if end > before else end
                parts.append(self._rows[row, start:end].long())
                starts.append(start)
                queries.append(queries[-1] + end - before)
                slots.append(slots[-1] + end - start)
            seen = self.pools.translate_loc_from_full_to_swa(torch.cat(parts))
            self._seen[window] = seen, queries, slots, starts
        return self._seen[window]

    def _forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save: bool = True,
        sinks: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        pool, index = self.pools.swa_kv_pool, self.pools.layers_mapping[layer.layer_id][0]
        slots, queries, keys, starts = self._slots(layer.sliding_window_size)
        asked, *written = by_heads(q, k, v, layer, queries[-1], save, extra)
        pool.set_kv_buffer(None, self._written, *written, 1.0, 1.0, layer_id_override=index)
        out = self._ops.attend_window(
            asked,
            pool.get_key_buffer(index),
            pool.get_value_buffer(index),
            slots,
            queries,
            keys,
            starts,
            layer.sliding_window_size,
            layer.scaling,
            layer.logit_cap or 0.0,
            sinks,
        )
        return by_rows(out, q, layer)

    forward_extend = forward_decode = _forward
