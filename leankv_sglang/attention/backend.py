"""The attention backend ``leankv``: the read rule, written once for prefill chunks, decode and mixed batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

from leankv_kernels import build_plan
from leankv_sglang.attention.host_pages import Rows, pages_filled, pages_near, pages_read
from leankv_sglang.attention.read_rule import Compressor
from leankv_sglang.attention.row_thresholds import RowThresholds, keep_rows
from leankv_sglang.compression.build import build_significance
from leankv_sglang.config import required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.pool import LeanKVPool

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from leankv_kernels import Plan


def check_layer(layer: RadixAttention) -> None:
    """Raise :class:`LeanKVError` for an attention layer the read rule does not cover."""
    reason = None
    if layer.is_cross_attention or layer.attn_type not in (AttentionType.DECODER, None):
        reason = "it has attention that is not causal self-attention"
    elif layer.sliding_window_size is not None and layer.sliding_window_size > -1:
        reason = "it has sliding-window attention layers"
    elif layer.logit_cap:
        reason = "its attention logits are capped"
    elif layer.qk_head_dim != layer.v_head_dim:
        reason = "its values have another head_dim than its keys"
    if reason:
        raise LeanKVError(f"LeanKV cannot serve this model: {reason}.")


class LeanKVBackend(AttentionBackend):
    """Own page raw, near and far views of the pages before, merged; full pages are committed in the same forward."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__()
        config = required_config()
        pool = runner.token_to_kv_pool
        assert isinstance(pool, LeanKVPool)
        for module in runner.model.modules():
            if isinstance(module, RadixAttention):
                check_layer(module)
        self.pool = pool
        self.near_pages = config.near_pages
        self.compressor = Compressor(
            pool.ops,
            pool.store,
            config.rotation,
            build_significance(config, pool.device, pool.of_rank),
            pool.alphas,
            config.keep_first,
        )
        self.req_to_token_pool = runner.req_to_token_pool
        rows = self.req_to_token_pool.req_to_token.shape[0]
        pool.attach_rows(rows, runner.model_config.get_num_attention_heads(get_parallel().attn_tp_size))
        self.row_thresholds = RowThresholds(rows, config, pool.thresholds)
        keep_rows(self.req_to_token_pool, self.row_thresholds)
        self.req_to_token_pool.register_on_alloc_rows(self._reset_rows)
        self.page_rows = pool.mirror_rows(self.req_to_token_pool)
        self.forward_metadata: Plan | None = None
        self.filled: Pages = np.empty(0, np.int64)
        """Ids of the pages that the forward fills."""
        self.thresholds: Tensor | None = None

    def _reset_rows(self, rows: list[int]) -> None:
        self.pool.open_pages.reset(rows)
        self.page_rows.forget(rows)
        self.row_thresholds.reset(rows)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Return the blocks of freed pages and plan the forward; uses lengths, rows and page ids the host already has.

        The plan also finds requests that share pages, which decode then reads once for all of them.
        """
        self.pool.drain()
        if forward_batch.forward_mode.is_idle():
            self.forward_metadata = None
            return
        if forward_batch.forward_mode.is_decode():
            seq_lens = forward_batch.seq_lens_cpu.tolist()
            prefix, extend = [n - 1 for n in seq_lens], [1] * len(seq_lens)
        else:
            prefix, extend = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu
        rows = self._rows(forward_batch)
        self.pool.open_pages.go_on(torch.from_numpy(rows), prefix, extend)
        pages = pages_read(self.page_rows, rows, prefix, extend)
        plan = self.forward_metadata = build_plan(
            forward_batch.req_pool_indices,
            prefix,
            extend,
            self.req_to_token_pool.req_to_token,
            self.pool.page_size,
            self.near_pages,
            host_pages=pages,
        )
        self.filled = pages_filled(self.page_rows, rows, plan)
        if self.pool.was_cut and self.near_pages:
            self.pool.check_near_pages(pages_near(pages, plan))
        self.thresholds = self.row_thresholds.of_full_pages(plan)

    def _rows(self, forward_batch: ForwardBatch) -> Rows:
        """The batch's request rows on the host; patches.row_alloc has SGLang leave them there for decode too."""
        rows = forward_batch.req_pool_indices_cpu
        if rows is None:
            return self.pool.slot_reader.ids(forward_batch.req_pool_indices)
        return rows.numpy().astype(np.int64)

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Prefill chunks and mixed batches; see :meth:`_run`."""
        return self._run(q, k, v, layer, save_kv_cache, kwargs)

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """One token per request; see :meth:`_run`."""
        return self._run(q, k, v, layer, save_kv_cache, kwargs)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, save: bool, extra: dict[str, Any]) -> Tensor:
        if k is None or v is None or not save:
            raise LeanKVError("LeanKV cannot serve this model: a layer attends without writing its own KV.")
        if any(value is not None for value in extra.values()):
            raise LeanKVError(f"LeanKV cannot serve this model: its attention takes {', '.join(extra)}.")
        plan, pool = self.forward_metadata, self.pool
        assert plan is not None
        index = layer.layer_id - pool.start_layer
        n = plan.num_tokens
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)[:n]
        keys = k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)[:n]
        values = v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim)[:n]
        raw = pool.open_pages.raw(index, plan, keys, values)
        merged = self.compressor.forward(index, plan, queries, raw, layer.scaling, self.thresholds)
        pool.open_pages.keep(index, plan, raw)
        if index == pool.layer_num - 1:
            pool.note_commits(plan, self.filled)
        out = merged.flatten(1).to(q.dtype)
        padded = q.numel() // (layer.tp_q_head_num * layer.qk_head_dim)
        return out if padded == n else torch.cat([out, out.new_zeros(padded - n, out.shape[1])])

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Unused: graphs are off."""
        return 1

    def support_triton(self) -> bool:
        """False: sglang's Triton helpers for slots do not apply."""
        return False
