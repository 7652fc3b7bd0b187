"""A world whose model has recurrent layers beside its full ones: their states in SGLang's pool, beneath the same tree.

The recurrent layer is a stand-in: its state is a number that the tokens up to it give.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, HybridReqToTokenPool
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.runtime_context import get_server_args

from leankv_sglang.kvcache.allocator import LeanKVAllocator
from leankv_sglang.kvcache.pool import LeanKVPool
from tests.kvcache.tree.window_world import says
from tests.kvcache.tree.world import CONTEXT, DIM, HEADS, LAYERS, PAGE, ROWS, World

STATES = 60
FULL_IDS, STATE_IDS = [1, 3], [0, 2]
assert len(FULL_IDS) == LAYERS


class StateWorld(World):
    """See the module."""

    rows: HybridReqToTokenPool

    def make_rows(self) -> HybridReqToTokenPool:
        """Rows with a state each, and two more slots that keep it at ends of pages."""
        get_server_args()._mamba_cache_chunk_size = PAGE
        shape = Mamba2StateShape.create(
            tp_world_size=1, intermediate_size=16, n_groups=1, num_heads=1, head_dim=16, state_size=4, conv_kernel=4
        )
        return HybridReqToTokenPool(
            size=ROWS,
            mamba_size=STATES,
            mamba_spec_state_size=ROWS,
            max_context_len=CONTEXT,
            device="cpu",
            enable_memory_saver=False,
            cache_params=Mamba2CacheParams(shape=shape, layers=STATE_IDS),
            mamba_layer_ids=STATE_IDS,
            enable_mamba_extra_buffer=True,
        )

    def make_pools(self, units: int) -> tuple[LeanKVPool, Any]:
        """Pages for the full layers; the states are the rows'."""
        pools = HybridLinearKVPool(
            size=units,
            dtype=torch.bfloat16,
            page_size=PAGE,
            head_num=HEADS,
            head_dim=DIM,
            full_attention_layer_ids=FULL_IDS,
            device="cpu",
            mamba_pool=self.rows.mamba_pool,
            full_kv_pool_class=LeanKVPool,
        )
        allocator = LeanKVAllocator(units, PAGE, torch.bfloat16, "cpu", pools, need_sort=False)
        assert allocator.get_kvcache() is pools
        return pools.full_kv_pool, allocator

    def tree_params(self) -> dict[str, Any]:
        """The tree knows states."""
        return {"tree_components": (ComponentType.FULL, ComponentType.MAMBA), "enable_mamba_extra_buffer": True}

    def _state(self, slot: Any) -> torch.Tensor:
        return self.rows.mamba_pool.mamba2_layer_cache(0).temporal[int(slot)].view(-1)

    def begun(self, req: Any, tokens: list[int]) -> None:
        """A hit begins with the state of its last token."""
        if (source := req.kv.mamba_cow_src_index) is not None:
            self.rows.copy_mamba_state(source, req.kv.mamba_pool_idx.view(1))
            req.kv.mamba_cow_src_index = None
        if tokens:
            assert self._state(req.kv.mamba_pool_idx)[0] == says(tokens)

    def written(self, req: Any, tokens: list[int], start: int) -> None:
        """Move the state on, and keep what it is at the last end of a page."""
        kv = req.kv
        if start:
            assert self._state(kv.mamba_pool_idx)[0] == says(tokens[:start])
        self._state(kv.mamba_pool_idx)[0] = says(tokens)
        end = len(tokens) // PAGE * PAGE
        if end > start:
            at = kv.mamba_next_track_idx
            self._state(kv.mamba_ping_pong_track_buffer[at])[0] = says(tokens[:end])
            kv.mamba_prev_track_seqlen, kv.mamba_last_track_seqlen = kv.mamba_last_track_seqlen, end
            kv.mamba_last_track_idx = at
            kv.mamba_next_track_idx = self.rows.get_mamba_ping_pong_other_idx(at)

    def dropped(self, req: Any) -> None:
        """Free the state of a request that did not leave it to the tree."""
        if req.kv.holds_mamba:
            self.rows.free_mamba_cache(req)

    def check(self) -> None:
        """Both sides' leak identities."""
        super().check()
        each = 1 + self.rows.mamba_ping_pong_track_buffer_size
        held = self.cache.mamba_evictable_size() + self.cache.mamba_protected_size() + each * len(self.running)
        assert self.rows.mamba_allocator.available_size() + held == STATES

    def evict_states(self, count: int) -> None:
        """Ask for states back."""
        self.cache.evict(EvictParams(num_tokens=0, mamba_num=count))
