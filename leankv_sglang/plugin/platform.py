"""Our subclasses of sglang's in-tree platforms: where the pool and the allocator are handed in."""

from __future__ import annotations

from sglang.srt.platforms.cpu import CpuSRTPlatform
from sglang.srt.platforms.cuda import CudaSRTPlatform
from sglang.srt.platforms.interface import KVPoolKind

from leankv_sglang.config import active_config


class _LeanKVMixin:
    def get_kv_pool_cls(self, *, kind: KVPoolKind) -> type | None:
        """The LeanKV pool for multi-head attention while LeanKV is on; None leaves sglang's own."""
        if active_config() is None or kind != "mha":
            return None
        from leankv_sglang.kvcache.pool import LeanKVPool

        return LeanKVPool

    def get_paged_allocator_cls(self) -> type | None:
        """The allocator that tells the pool which pages were freed."""
        if active_config() is None:
            return None
        from leankv_sglang.kvcache.allocator import LeanKVAllocator

        return LeanKVAllocator


def hybrid_classes() -> tuple[type, type]:
    """The classes of pool and allocator of a model with sliding windows."""
    from leankv_sglang.kvcache.hybrid.allocator import HybridAllocator
    from leankv_sglang.kvcache.hybrid.pools import WindowPools

    return WindowPools, HybridAllocator


class LeanKVCpuPlatform(_LeanKVMixin, CpuSRTPlatform):
    """sglang's CPU platform."""


class LeanKVCudaPlatform(_LeanKVMixin, CudaSRTPlatform):
    """sglang's CUDA platform."""
