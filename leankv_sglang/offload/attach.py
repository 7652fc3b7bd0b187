"""How a server comes by its places beyond the device: from the configuration to the linker that the tree drives."""

from __future__ import annotations

import os
from typing import Any

import torch

from leankv_patches import SGLANG_VERSION
from leankv_sglang.config import LeanKVConfig, required_config
from leankv_sglang.offload.disk import DiskStore
from leankv_sglang.offload.figures import report
from leankv_sglang.offload.host import HostStore
from leankv_sglang.offload.identity import digest_of_weights, identity
from leankv_sglang.offload.linker import LeanKVLinker
from leankv_sglang.offload.load_rule import LoadRule
from leankv_sglang.offload.mooncake import MooncakeStore, parse_address
from leankv_sglang.offload.page_object import PageName, PageObject, read_object
from leankv_sglang.offload.page_store import PageStore
from leankv_sglang.offload.store_stack import StoreStack
from leankv_sglang.offload.tree import OffloadingRadixCache

READ_BUFFER = 256 << 20
"""Host memory that a store is read through where none was asked for."""


class ServedLinker(LeanKVLinker):
    """The linker as SGLang makes it, before the model is known; :meth:`open` settles what depends on that."""

    def __init__(self, server_args: Any, params: Any, **_given: Any) -> None:
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        group = params.attn_tp_cache_group
        if group is not None and torch.distributed.get_world_size(group=group) < 2:
            group = None
        config = required_config()
        nowhere, rule = StoreStack(HostStore(0), None, _unread), LoadRule(config.load)
        super().__init__(pool, nowhere, b"", bool(config.host_memory), group, rule)
        self._config, self._rank = config, torch.distributed.get_rank(group) if group is not None else 0
        self._deterministic = bool(server_args.enable_deterministic_inference)
        self._model: torch.nn.Module | None = None

    def open(self, model: torch.nn.Module) -> None:
        """Have places for the pages of this model, with the weights that it has now."""
        self._model = model
        self.identity = self._identity(model)
        self.stack = open_stack(self._config, self.identity, self.pool.layer_num, self.rule)

    def reset(self) -> None:
        """The cache is emptied, host memory too; what a store holds stays, and is found again by the same weights."""
        super().reset()
        if self._model is None:
            return
        if (now := self._identity(self._model)) == self.identity:
            self.stack.forget()
        else:
            self.stack.close()
            self.identity, self.stack = now, open_stack(self._config, now, self.pool.layer_num, self.rule)

    def _identity(self, model: torch.nn.Module) -> bytes:
        pool, group = self.pool, self.group
        facts = {
            "layers": pool.layer_num,
            "kv_heads": pool.head_num,
            "head_dim": pool.head_dim,
            "v_head_dim": pool.v_head_dim,
            "page_size": pool.page_size,
            "dtype": str(pool.model_dtype),
            "rank": self._rank,
            "ranks": torch.distributed.get_world_size(group) if group is not None else 1,
            "kernels": pool.ops.describe(),
            "deterministic": self._deterministic,
            "sglang": SGLANG_VERSION,
            "torch": torch.__version__,
            "machine": _machine(pool.store.blocks.device),
        }
        return identity(self._config, facts, digest_of_weights(model.state_dict().items()))


def _machine(device: torch.device) -> list[str]:
    """What of the machine may show in the last bit of a product."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), str(torch.version.cuda)]
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return [torch.backends.cpu.get_cpu_capability(), isa, str(torch.get_num_threads())]


def _unread(name: PageName, data: bytes) -> PageObject:
    raise AssertionError("a page was read before the linker was opened")


def open_stack(config: LeanKVConfig, whose: bytes, layers: int, rule: LoadRule) -> StoreStack:
    """The places that a configuration asks for, for pages of one identity; the rule is told how fast the store is.

    Raises:
        LeanKVError: where one of them is not to be had.
    """
    store: PageStore | None = None
    if config.store is not None and config.store.startswith("file:"):
        store = DiskStore(config.store.removeprefix("file:"), whose, config.store_size)
    elif config.store is not None:
        store = MooncakeStore(parse_address(config.store), whose, config.store_size)
    host = HostStore(config.host_memory or READ_BUFFER)
    return StoreStack(host, store, lambda name, data: read_object(name, whose, layers, data), rule.read)


def create_cache(ctx: Any) -> Any:
    """Factory for SGLang's registry of radix caches."""
    from sglang.srt.mem_cache.registry import create_unified_radix_cache

    cache = create_unified_radix_cache(ctx, cache_class=OffloadingRadixCache)
    assert isinstance(cache.linker.cache_linker, ServedLinker)
    cache.linker.cache_linker.open(ctx.tp_worker.model_runner.model)
    report(cache.linker.cache_linker)
    return cache
