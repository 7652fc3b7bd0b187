"""The real pool, allocator and radix tree without a server or a model: commits write ready-made records."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from leankv_kernels import RawPages, RecordStore, get_ops
from leankv_kernels.layout import HIGH, LOW, PRUNED
from leankv_kernels.reference.record import read_header
from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.environment import prepare_cpu
from leankv_sglang.kvcache.sizing import open_page_bytes, tokens_for
from leankv_sglang.models.shape import ModelShape

PAGE = 128


@dataclass
class Mix:
    """Shares of tokens by tier in every head, spread evenly by up to ``spread``, and of heads pruned altogether."""

    high: float
    pruned_heads: float = 0.0
    spread: float = 0.2


@dataclass
class CapacityWorld:
    """A pool of a model's shape in so many bytes, with a tree over it.

    Args:
        shape: the model's.
        memory: bytes of pool, tables and open pages.
        config: how pages are compressed.
        mix: what commits choose.
        requests: open pages.
    """

    shape: ModelShape
    memory: int
    config: LeanKVConfig
    mix: Mix
    requests: int = 16
    tokens_written: int = field(default=0, init=False)
    tokens_asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        prepare_cpu()
        os.environ[CONFIG_ENV] = self.config.to_json()
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
        from sglang.srt.mem_cache.unified_cache.components import ComponentType
        from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

        from leankv_sglang.compression.build import make_layout
        from leankv_sglang.kvcache.allocator import LeanKVAllocator
        from leankv_sglang.kvcache.pool import LeanKVPool
        from leankv_sglang.kvcache.tree.radix_cache import LeanKVRadixCache

        set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", page_size=PAGE))
        shape = self.shape
        layers, query_heads, kv_heads, head_dim = shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim
        layout = make_layout(self.config, PAGE, kv_heads, head_dim)
        units = tokens_for(self.memory, layout, layers, query_heads, self.requests)
        self.pool = LeanKVPool(units, PAGE, torch.bfloat16, kv_heads, head_dim, layers, "cpu", False)
        self.allocator = LeanKVAllocator(units, PAGE, torch.bfloat16, "cpu", self.pool, need_sort=False)
        self.cache: Any = LeanKVRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=ReqToTokenPool(4, 64, "cpu", False),
                token_to_kv_pool_allocator=self.allocator,
                page_size=PAGE,
                tree_components=(ComponentType.FULL,),
            )
        )
        self.open_bytes = (self.requests + 1) * open_page_bytes(layout, layers, query_heads)
        self.random = np.random.default_rng(0)
        self._templates = self._make_templates(16)

    def _make_templates(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Records of random pages, encoded by the real kernel, to be copied."""
        lay = self.pool.layout
        store = RecordStore(lay, 1, count, "cpu")
        shape = (count, PAGE, lay.num_kv_heads, lay.head_dim)
        key, value = (torch.randn(shape).to(torch.bfloat16) for _ in range(2))
        high = self.mix.high + self.mix.spread * (2 * torch.rand(count, lay.num_kv_heads, 1) - 1) * min(
            self.mix.high, 1 - self.mix.high
        )
        tiers = torch.where(torch.rand(count, lay.num_kv_heads, PAGE) < high, HIGH, LOW)
        gone = torch.rand(count, lay.num_kv_heads, 1) < self.mix.pruned_heads
        tiers = torch.where(gone, PRUNED, tiers).to(torch.uint8)
        pages = torch.arange(1, count + 1)
        get_ops("cpu").commit_pages(store, 0, pages, RawPages.whole(key, value), tiers, self.config.rotation)
        records = store.gather(0, pages)
        return records, read_header(records, lay).nbytes.long()

    def commit(self, pages: torch.Tensor) -> None:
        """Write records of pages in every layer, as a forward would, and note them."""
        self.pool.drain()
        records, lengths = self._templates
        for layer in range(self.shape.layers):
            which = torch.from_numpy(self.random.integers(0, len(records), len(pages)))
            self.pool.store.write(layer, pages, records[which].clone(), lengths[which])
        self.pool.commits.add(pages, pages.numpy())
        self.pool.version += 1
        self.tokens_written += len(pages) * PAGE

    def insert(self, tokens: array[int]) -> bool:
        """Prefill a sequence, as far as the tree does not hold it, and leave it there; False where memory is short."""
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        key = RadixKey(tokens)
        match = self.cache.match_prefix(MatchPrefixParams(key=key))
        hit = match.device_prefix_len
        self.tokens_asked += len(tokens)
        lock = self.cache.lock(match.last_device_node)
        try:
            need = len(tokens) // PAGE * PAGE - hit
            self.allocator.evict_to_free_tokens(self.cache, need)
            slots = self.allocator.alloc(need)
            if slots is None:
                return False
            self.commit(slots[::PAGE] // PAGE)
            value = torch.cat([self.cache.path_device_indices(match.last_device_node), slots])
            self.cache.insert(InsertParams(key=key, value=value, prev_prefix_len=hit))
        finally:
            self.cache.unlock(lock)
        return True

    def new_sequence(self, pages: int, branch_of: array[int] | None = None) -> array[int]:
        """Random tokens, after a random part of another sequence if one is given."""
        fresh = array("q", self.random.integers(0, 1 << 30, pages * PAGE).tolist())
        if branch_of is None:
            return fresh
        keep = int(self.random.integers(1, len(branch_of) // PAGE)) * PAGE
        return branch_of[:keep] + fresh[keep:]

    def held(self) -> int:
        """Tokens in the tree."""
        return self.pool.store.usage().records * PAGE // self.shape.layers
