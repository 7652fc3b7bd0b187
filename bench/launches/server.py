"""The memory and attention side of a server around a tiny model without weights, on an imitated device.

Everything of ours is real: pool, allocator, tree, backend. What SGLang's scheduler does between them is done here in
its order, as ``alloc_for_extend``, ``alloc_for_decode`` and ``release_kv_cache`` of 0.5.23 do it.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.launches.imitation import Imitation
from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.environment import has_accelerator, prepare_cpu

if not has_accelerator():
    prepare_cpu()

PAGE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 6, 2, 64
ROWS, CONTEXT, PAGES = 32, 2048, 600


class TinyServer:
    """Pool, tree and backend, and the requests that run.

    Args:
        device: where the pool is said to be.
        config: of LeanKV.
    """

    def __init__(self, device: Imitation, config: LeanKVConfig) -> None:
        os.environ[CONFIG_ENV] = config.to_json()
        from sglang.srt.layers.radix_attention import RadixAttention
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
        from sglang.srt.mem_cache.unified_cache.components import ComponentType
        from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

        from leankv_sglang.attention import backend
        from leankv_sglang.kvcache import pool as pool_module
        from leankv_sglang.kvcache.allocator import LeanKVAllocator
        from leankv_sglang.kvcache.commit_log import CommitLog
        from leankv_sglang.kvcache.pool import LeanKVPool
        from leankv_sglang.kvcache.tree.radix_cache import LeanKVRadixCache

        set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", page_size=PAGE))
        self.device, self.plan_copies = device, 0
        pool = self.pool = LeanKVPool(PAGES * PAGE, PAGE, torch.bfloat16, KV_HEADS, HEAD_DIM, LAYERS, "cpu", False)
        pool.ops = pool.deferred.ops = self._as_kernels(pool.ops)
        pool.commits = CommitLog(pool.store, pool.ledger, pool.ops, device.copy_out)
        self.allocator = LeanKVAllocator(PAGES * PAGE, PAGE, torch.bfloat16, "cpu", pool, need_sort=False)
        self.rows = ReqToTokenPool(size=ROWS, max_context_len=CONTEXT, device="cpu", enable_memory_saver=False)
        model = SimpleNamespace(get_num_attention_heads=lambda _ranks: HEADS, context_len=CONTEXT)
        self.runner: Any = SimpleNamespace(
            token_to_kv_pool=pool, req_to_token_pool=self.rows, model=torch.nn.Module(), model_config=model
        )
        # The backend settles the pool's kernels: those it has already, which are counted.
        with (
            mock.patch.object(backend, "get_parallel", return_value=SimpleNamespace(attn_tp_size=1)),
            mock.patch.object(pool_module, "kernels_for", return_value=pool.ops),
        ):
            self.backend = backend.LeanKVBackend(self.runner)
        self.cache = LeanKVRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.allocator,
                page_size=PAGE,
                tree_components=(ComponentType.FULL,),
            )
        )
        self.layers = [RadixAttention(HEADS, HEAD_DIM, HEAD_DIM**-0.5, KV_HEADS, layer_id=i) for i in range(LAYERS)]
        self.running: list[Any] = []
        store, raw = pool.store, pool.open_pages
        compressor = self.backend.compressor
        for table in (
            store,
            store.ring,
            compressor,
            compressor.significance,
            self.allocator,
            self.backend.row_thresholds,
        ):
            device.own(list(vars(table).values()))
        device.own([raw.key, raw.value, raw.scores, pool.alphas, self.rows.req_to_token])
        self._build_plan = backend.build_plan
        self._planning = mock.patch.object(backend, "build_plan", self._plan)

    def _as_kernels(self, ops: Any) -> Any:
        functions = {k: self.device.kernel(v) for k, v in ops._asdict().items() if callable(v)}
        return ops._replace(**functions)

    def _plan(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, and count the copies of that apart."""
        before = self.device.counts.copies
        plan = self._build_plan(*args, **kwargs)
        self.plan_copies += self.device.counts.copies - before
        self.device.counts.copies = before
        return plan

    # ---- what a scheduler does ----

    def _forward(self, rows: list[int], prefix: list[int], extend: list[int], decode: bool) -> None:
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        host_rows, ends = torch.tensor(rows), [p + e for p, e in zip(prefix, extend, strict=True)]
        batch: Any = SimpleNamespace(
            forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
            req_pool_indices=self._there(rows),
            req_pool_indices_cpu=host_rows,
            seq_lens_cpu=torch.tensor(ends),
            extend_prefix_lens_cpu=prefix,
            extend_seq_lens_cpu=extend,
        )
        with self._planning:
            self.backend.init_forward_metadata(batch)
        tokens = sum(extend)
        with self.device.quiet():
            q = self.device.own(torch.randn(tokens, HEADS * HEAD_DIM).bfloat16())
            k, v = (self.device.own(torch.randn(tokens, KV_HEADS * HEAD_DIM).bfloat16()) for _ in range(2))
        run: Callable[..., Tensor] = self.backend.forward_decode if decode else self.backend.forward_extend
        self.before_layers = self.device.counts.launches
        for layer in self.layers:
            run(q, k, v, layer, batch)
        self.in_layers = self.device.counts.launches - self.before_layers

    def _there(self, numbers: list[int]) -> Tensor:
        """Numbers that SGLang has put on the device itself."""
        with self.device.quiet():
            return self.device.own(torch.tensor(numbers))

    def _new(self, tokens: list[int]) -> Any:
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.mem_cache.common import match_kv_cache
        from sglang.srt.sampling.sampling_params import SamplingParams

        req: Any = Req("r", "", array("q", tokens), SamplingParams(temperature=0, max_new_tokens=8))
        match_kv_cache(req, self.cache, array("q", tokens[:-1]))
        req.lock = self.cache.lock(req.last_node)
        req.kv.cache_protected_len = req.prefix_len
        return req

    def prefill(self, prompts: list[list[int]]) -> None:
        """One forward over prompts, as far as the tree does not hold them; then the tree has them."""
        reqs = [self._new(prompt) for prompt in prompts]
        prefix, ends = [req.prefix_len for req in reqs], [len(prompt) for prompt in prompts]
        tensors = [self.cache.prefix_device_indices(req) for req in reqs]
        rows = self.rows.alloc(reqs)
        self.backend.page_rows.begin(reqs)
        self.allocator.evict_to_free_tokens(self.cache, sum(ends) - sum(prefix) + len(reqs) * PAGE)
        last = torch.cat([t[-1:] if len(t) else self._there([-1]) for t in tensors])
        lens = (self._there(prefix), torch.tensor(prefix), self._there(ends), torch.tensor(ends))
        slots = self.allocator.alloc_extend(*lens, last, sum(ends) - sum(prefix))
        assert slots is not None
        with self.device.quiet():  # one kernel of SGLang's
            parts = slots.split([e - p for p, e in zip(prefix, ends, strict=True)])
            for row, tensor, part in zip(rows, tensors, parts, strict=True):
                self.rows.write((row, slice(0, len(tensor) + len(part))), torch.cat([tensor, part]).int())
        self.backend.page_rows.extended(torch.tensor(rows))
        self._forward(rows, prefix, [e - p for p, e in zip(prefix, ends, strict=True)], decode=False)
        for req, prompt in zip(reqs, prompts, strict=True):
            req.full_untruncated_fill_ids = array("q", prompt)
            req.kv.kv_committed_len = req.kv.kv_allocated_len = len(prompt)
            self.cache.checkpoint(req, up_to=len(prompt))
        self.running += reqs

    def decode(self) -> None:
        """One token more for every running request."""
        rows = [req.kv.req_pool_idx for req in self.running]
        lengths = [req.kv.kv_allocated_len for req in self.running]
        there, now = self._there(rows), self._there(lengths)
        after = [n + 1 for n in lengths]
        self.allocator.evict_to_free_tokens(self.cache, len(rows) * PAGE)
        last = self.rows.req_to_token[there, now - 1]
        slots = self.allocator.alloc_decode(self._there(after), torch.tensor(after), last)
        assert slots is not None
        self.rows.write((there, now.clone()), slots.to(torch.int32))
        self.backend.page_rows.extended(torch.tensor(rows))
        self._forward(rows, lengths, [1] * len(rows), decode=True)
        for req in self.running:
            req.output_ids.append(7)
            req.kv.kv_committed_len = req.kv.kv_allocated_len = req.kv.kv_allocated_len + 1

    def finish(self) -> None:
        """Every running request ends: its figures, its pages to the tree, the rest freed; then the pool's figures."""
        from sglang.srt.managers.schedule_batch import FINISH_LENGTH
        from sglang.srt.mem_cache.common import release_kv_cache

        from leankv_sglang.observability import request_stats
        from leankv_sglang.observability.pool_stats import pool_figures

        for req in self.running:
            req.finished_reason = FINISH_LENGTH(length=0)
            with mock.patch.object(request_stats, "current_pool", return_value=self.pool):
                request_stats.note_release(req, self.cache)
            release_kv_cache(req, self.cache, checkpoint=True)
        self.running.clear()
        pool_figures(self.pool)
