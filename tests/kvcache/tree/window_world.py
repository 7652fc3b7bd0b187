"""A world whose model has sliding windows beside its full layers: raw, in SGLang's pool, beneath the same tree."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.managers.scheduler_components.pool_stats_observer import kv_private_swa_tokens
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from leankv_sglang.kvcache.hybrid.allocator import HybridAllocator
from leankv_sglang.kvcache.hybrid.pools import WindowPools
from leankv_sglang.kvcache.pool import LeanKVPool
from tests.kvcache.tree.world import DIM, HEADS, LAYERS, PAGE, World

WINDOW = 40
WINDOW_PAGES = 36
FULL_IDS, WINDOW_IDS = [1, 3], [0, 2, 4]
assert len(FULL_IDS) == LAYERS


class WindowWorld(World):
    """See the module; a window's token is a number that the tokens up to it give."""

    pools: WindowPools

    def make_pools(self, units: int) -> tuple[LeanKVPool, Any]:
        """Pages for the full layers, slots for the windows."""
        size = {"size": units, "size_swa": WINDOW_PAGES * PAGE, "page_size": PAGE, "dtype": torch.bfloat16}
        self.pools = WindowPools(
            **size,
            head_num=HEADS,
            head_dim=DIM,
            swa_attention_layer_ids=WINDOW_IDS,
            full_attention_layer_ids=FULL_IDS,
            device="cpu",
        )
        allocator = HybridAllocator(**size, device="cpu", kvcache=self.pools, need_sort=False)
        return self.pools.full_kv_pool, allocator

    def tree_params(self) -> dict[str, Any]:
        """The tree knows windows."""
        kinds = ComponentType.FULL, ComponentType.SWA
        return {"tree_components": kinds, "sliding_window_size": WINDOW}

    def written(self, req: Any, tokens: list[int], start: int) -> None:
        """Write the windows, and let go of what they have slid past."""
        row = self.rows.req_to_token[req.kv.req_pool_idx, start : len(tokens)].long()
        slots = self.pools.translate_loc_from_full_to_swa(row)
        assert (slots > 0).all()
        said = torch.tensor([says(tokens[: i + 1]) for i in range(start, len(tokens))])
        self.pools.swa_kv_pool.get_key_buffer(0)[slots, 0, 0] = said.to(torch.bfloat16)
        if len(tokens) - start == 1:
            self.cache.evict_sliding_windows(req, len(tokens) - 1)

    def check_reads(self, req: Any) -> None:
        """Pages, and the window of the next token."""
        super().check_reads(req)
        tokens = req.full_untruncated_fill_ids.tolist()
        start = max(len(tokens) - WINDOW, 0)
        slots = self.pools.translate_loc_from_full_to_swa(
            self.rows.req_to_token[req.kv.req_pool_idx, start : len(tokens)].long()
        )
        got = self.pools.swa_kv_pool.get_key_buffer(0)[slots, 0, 0]
        want = torch.tensor([says(tokens[: i + 1]) for i in range(start, len(tokens))]).to(torch.bfloat16)
        assert torch.equal(got, want)

    def check(self) -> None:
        """Both sides' leak identities, and the table between them."""
        self.pool.settle()
        held = self.cache.full_evictable_size() + self.cache.full_protected_size() + self.private_units()
        assert self.allocator.full_available_size() + held == self.pool.ledger.units
        private = sum(kv_private_swa_tokens(req.kv, PAGE) for req in self.running)
        windows = self.cache.swa_evictable_size() + self.cache.swa_protected_size() + private
        assert self.allocator.swa_available_size() + windows == WINDOW_PAGES * PAGE
        self.cache.sanity_check()
        if problems := self.pool.audit() + self.allocator.audit_windows():
            raise AssertionError("; ".join(problems))

    def evict_windows(self, tokens: int) -> None:
        """Ask for memory of windows back."""
        self.cache.evict(EvictParams(num_tokens=0, swa_num_tokens=tokens))


def says(tokens: list[int]) -> float:
    """What the window's token behind these says; no two prefixes alike, but for few."""
    return float(hash(tuple(tokens)) % 30000 + 1)
