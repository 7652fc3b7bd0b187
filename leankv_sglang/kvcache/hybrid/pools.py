"""The pools of a model with sliding windows, as SGLang's attention backends and scheduler know them."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.pool import LeanKVPool


class WindowPools(SWAKVPool):
    """Compressed pages for the full layers, SGLang's raw slots for the windows; takes what ``SWAKVPool`` takes.

    Raises:
        LeanKVError: for a model without full layers, where nothing is left to compress.
    """

    full_kv_pool: LeanKVPool
    swa_kv_pool: MHATokenToKVPool

    def __init__(self, *args: Any, full_attention_layer_ids: list[int], **kwargs: Any) -> None:
        if not full_attention_layer_ids:
            raise LeanKVError("LeanKV cannot serve this model: every layer has a sliding window, and none grows.")
        kwargs |= {"token_to_kv_pool_class": None, "swa_kv_pool_class": MHATokenToKVPool}
        super().__init__(
            *args, full_attention_layer_ids=full_attention_layer_ids, full_kv_pool_class=LeanKVPool, **kwargs
        )
        # Some models fuse RoPE with a raw store into the pool when it claims to hold bfloat16.
        self.dtype = torch.uint8

    def get_v_head_dim(self) -> int:
        """Of the windows, which are all that SGLang's backends read here."""
        return int(self.swa_kv_pool.get_value_buffer(self.swa_kv_pool.start_layer).shape[-1])
