"""The attention backend ``leankv``: the read rule, written once for prefill chunks, decode and mixed batches.

A decode step commits nothing: the page it fills it reads raw, so the commit waits for the next forward's start, all
layers in one batch. So steps of any lengths launch alike, and CUDA graphs replay them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

from leankv_kernels import StaticPlan, build_plan
from leankv_sglang.attention.host_pages import Rows, pages_filled, pages_near, pages_read
from leankv_sglang.attention.layers import by_heads, by_rows, check_layer
from leankv_sglang.attention.read_rule import Compressor
from leankv_sglang.attention.row_thresholds import RowThresholds, keep_rows
from leankv_sglang.attention.windows import create_windows
from leankv_sglang.compression.build import build_significance
from leankv_sglang.config import required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.deferred import FilledPages
from leankv_sglang.kvcache.heap import Heap
from leankv_sglang.kvcache.hybrid import compressed_pool
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.pool import LeanKVPool
from leankv_sglang.kvcache.sizing import most_tokens

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from leankv_kernels import Plan


class LeanKVBackend(AttentionBackend):
    """Own page raw, near and far views of the pages before, merged. A prefill commits full pages in its layers, since
    its later queries read them; a decode step leaves them to the next forward."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__()
        config = required_config()
        self.token_to_kv_pool = runner.token_to_kv_pool
        """What SGLang's models look for."""
        pool = compressed_pool(runner.token_to_kv_pool)
        assert isinstance(pool, LeanKVPool)
        self.pool = pool
        self.windows = create_windows(runner)
        self.context = runner.model_config.context_len
        self.kept: int | None = getattr(runner, "sliding_window_size", None)
        self.checked: set[RadixAttention] = set()
        # SGLang's transformers backend keeps its attention layers apart.
        apart = getattr(runner.model, "attention_instances", None) or {}
        for module in (*runner.model.modules(), *apart.values()):
            if isinstance(module, RadixAttention):
                self._check_layer(module)
        self.index = {layer: index for index, layer in enumerate(pool.model_layer_ids)}
        self.heap = Heap() if torch.device(pool.device).type == "cpu" else None
        self.near_pages = config.near_pages
        self.req_to_token_pool = runner.req_to_token_pool
        rows = self.req_to_token_pool.req_to_token.shape[0]
        model = runner.model_config
        heads = model.get_num_attention_heads(get_parallel().attn_tp_size)
        pool.attach_rows(rows, heads, most_tokens(model.context_len))
        self.compressor = Compressor(
            pool.ops,
            pool.store,
            config.rotation,
            build_significance(config, pool.device, pool.of_rank),
            pool.alphas,
            config.keep_first,
        )
        pool.committer = self._commit_filled
        self.row_thresholds = RowThresholds(config, pool.thresholds)
        keep_rows(self.req_to_token_pool, self.row_thresholds)
        self.req_to_token_pool.register_on_alloc_rows(self._reset_rows)
        self.page_rows = pool.mirror_rows(self.req_to_token_pool)
        self.forward_metadata: Plan | None = None
        self.graph_plan: StaticPlan | None = None
        """What captured graphs read."""
        self.filled: Pages = np.empty(0, np.int64)
        """Ids of the pages that the forward itself commits."""
        self.thresholds: Tensor | None = None

    def _check_layer(self, layer: RadixAttention) -> None:
        windowed = self.windows is not None and layer.layer_id in self.windows.layers
        check_layer(layer, self.context, windowed, self.kept, (self.pool.head_dim, self.pool.v_head_dim))
        self.checked.add(layer)

    def _reset_rows(self, rows: list[int]) -> None:
        self.pool.open_pages.reset(rows)
        self.page_rows.forget(rows)
        self.row_thresholds.reset(rows)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Commit and free what has waited for this forward, and plan it; uses lengths, rows and page ids that the host
        has already.

        The plan also finds requests that share pages, which decode then reads once for all of them.
        """
        if self.heap is not None:
            self.heap.trim_if_due()
        self.pool.drain()
        if self.windows is not None:
            self.windows.init_forward_metadata(forward_batch)
        self.filled, self.thresholds = self.filled[:0], None
        mode = forward_batch.forward_mode
        if mode.is_idle():
            self.forward_metadata = None
            return
        if mode.is_decode():
            seq_lens = forward_batch.seq_lens_cpu.tolist()
            prefix, extend = [n - 1 for n in seq_lens], [1] * len(seq_lens)
        else:
            prefix, extend = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu
        rows = self._rows(forward_batch)
        pages = self._begin(rows, prefix, extend)
        plan = build_plan(
            forward_batch.req_pool_indices,
            prefix,
            extend,
            self.req_to_token_pool.req_to_token,
            self.pool.page_size,
            self.near_pages,
            host_pages=pages,
        )
        if not plan.one_tile_per_row:
            self.pool.open_pages.places(plan)  # here, where nothing is being captured
        self._check_near(pages, plan.page_index, plan.page_indptr, plan.request)
        filled, owners = pages_filled(self.page_rows, rows, plan)
        if not filled.all():  # page 0, of a batch made up to warm up or to capture
            filled = filled[:0]
        self.forward_metadata = plan
        thresholds = self.row_thresholds.of_rows(owners.tolist()) if len(filled) else None
        if not mode.is_decode():
            self.filled, self.thresholds = filled, thresholds
        elif len(filled):
            ids, owners_there = plan.own_pages.index_select(0, plan.full), plan.rows.index_select(0, plan.full)
            self.pool.commit_later(FilledPages(ids, owners_there, plan.full_index, thresholds), filled)

    def _begin(self, rows: Rows, prefix: Sequence[int], extend: Sequence[int]) -> Pages:
        """Note on the host what a forward writes; the ids of the pages that it reads."""
        self.pool.open_pages.go_on(torch.from_numpy(rows), prefix, extend)
        return pages_read(self.page_rows, rows, prefix, extend)

    def _check_near(self, pages: Pages, own: Sequence[int], indptr: Sequence[int], request: Sequence[int]) -> None:
        if self.pool.was_cut and self.near_pages:
            self.pool.check_near_pages(pages_near(pages, own, indptr, request, self.near_pages))

    # ---- CUDA graphs of decode steps ----

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Allocate what graphs of up to ``max_bs`` requests read, at addresses that stay.

        Raises:
            LeanKVError: for kernels that cannot be captured.
        """
        if not self.pool.ops.takes_bounds:
            raise LeanKVError(
                f"LeanKV's {self.pool.ops.name} kernels cannot be captured in CUDA graphs; add --disable-cuda-graph or "
                "choose --leankv-kernels cuda."
            )
        pages = -(-self.req_to_token_pool.req_to_token.shape[1] // self.pool.page_size)
        self.graph_plan = StaticPlan(max_bs, pages, self.pool.page_size, self.near_pages, self.pool.device)
        if self.windows is not None:
            self.windows.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        """Before a capture: the plan of padding alone. Before a replay: what :meth:`init_forward_metadata` does, with
        the graph's plan rewritten in one copy."""
        if self.windows is not None:
            self.windows.init_forward_metadata_out_graph(forward_batch, in_capture)
        plan, none = self.graph_plan, self.filled[:0]
        assert plan is not None
        self.filled, self.thresholds = none, None
        self.forward_metadata = plan.plan(forward_batch.batch_size)
        if in_capture:
            plan.fill(none, none, none, none)
            return
        self.pool.drain()
        count = forward_batch.batch_size - forward_batch.num_padding
        rows, lengths = self._rows(forward_batch)[:count], forward_batch.seq_lens_cpu[:count].numpy().astype(np.int64)
        pages, before = self._begin(rows, (lengths - 1).tolist(), [1] * count), (lengths - 1) // self.pool.page_size
        indptr = np.concatenate([[0], np.cumsum(before)]).tolist()
        self._check_near(pages, before.tolist(), indptr, range(count))
        own = self.page_rows.read(rows, before)
        if len(full := plan.fill(rows, lengths, pages, own)):
            thresholds = self.row_thresholds.of_rows(rows[full].tolist())
            self.pool.commit_later(FilledPages(*plan.full(len(full)), thresholds), own[full])

    def _commit_filled(self, filled: FilledPages) -> None:
        raw = self.pool.open_pages.of_rows(filled.rows)
        self.compressor.commit(0, filled.pages, raw, filled.page_index, filled.alphas)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Tokens of a row of padding: one, of row 0 and page 0, which nothing reads and nothing commits."""
        return 1

    def _rows(self, forward_batch: ForwardBatch) -> Rows:
        """The batch's request rows on the host; patches.row_alloc has SGLang leave them there for decode too, and
        patches.replay_rows hand them to graphs."""
        rows = getattr(forward_batch, "req_pool_indices_cpu", None)
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
        if self.windows is not None and layer.layer_id in self.windows.layers:
            return self.windows.forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        return self._run(q, k, v, layer, save_kv_cache, **kwargs)

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
        if self.windows is not None and layer.layer_id in self.windows.layers:
            return self.windows.forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        return self._run(q, k, v, layer, save_kv_cache, **kwargs)

    def _run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        save: bool,
        sinks: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        if layer not in self.checked:
            self._check_layer(layer)
        plan, pool = self.forward_metadata, self.pool
        assert plan is not None
        index = self.index[layer.layer_id]
        queries, keys, values = by_heads(q, k, v, layer, plan.num_tokens, save, extra)
        raw = pool.open_pages.raw(index, plan, keys, values)
        commits = len(self.filled) > 0
        chosen = self.thresholds, commits, q.dtype, layer.logit_cap or 0.0, sinks
        merged = self.compressor.forward(index, plan, queries, raw, layer.scaling, *chosen)
        pool.open_pages.keep(index, plan, raw)
        if commits and index == pool.layer_num - 1:
            pool.note_commits(plan, self.filled)
        return by_rows(merged, q, layer)

    def support_triton(self) -> bool:
        """False: sglang's Triton helpers for slots do not apply."""
        return False
