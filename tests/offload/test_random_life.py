"""Thousands of random steps of serving with pages that leave the device and come back: every read is still right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.offload.disk import DiskStore
from leankv_sglang.offload.host import HostStore
from leankv_sglang.offload.linker import LeanKVLinker
from leankv_sglang.offload.page_object import read_object
from leankv_sglang.offload.store_stack import StoreStack
from leankv_sglang.offload.tree import OffloadingRadixCache
from tests.kvcache.late import LateCopies
from tests.kvcache.tree.test_random_life import STEPS, step
from tests.kvcache.tree.world import DIM, LAYERS, World

IDENTITY = bytes(range(16))
LATE, NARROW = "counts come late", "values of another width"
CASES: dict[str, tuple[LeanKVConfig, int, int]] = {
    "host alone": (LeanKVConfig(), 300_000, 0),
    "disk alone": (LeanKVConfig(), 0, 10_000_000),
    "both too small": (LeanKVConfig(alpha_low=0.1), 40_000, 120_000),
    "two pages near": (LeanKVConfig(near_pages=2), 300_000, 600_000),
    "no near part": (LeanKVConfig(near_pages=0, alpha_low=0.1), 100_000, 600_000),
    "demoting": (LeanKVConfig(demote=True), 300_000, 0),
    LATE: (LeanKVConfig(), 300_000, 600_000),
    NARROW: (LeanKVConfig(), 250_000, 500_000),
}


class NarrowValues(World):
    """Of a model whose values are half as wide as its keys."""

    v_head_dim = DIM // 2


def world_with(
    folder: Path, host: int, disk: int, kind: type[World] = World, **options: Any
) -> tuple[World, LeanKVLinker]:
    """A scheduler in miniature, with places for pages beyond its pool."""
    world = kind(pages=40, tree=OffloadingRadixCache, **options)
    store = DiskStore(folder, IDENTITY, disk) if disk else None
    stack = StoreStack(HostStore(host or 1 << 20), store, lambda name, data: read_object(name, IDENTITY, LAYERS, data))
    linker = LeanKVLinker(world.pool, stack, IDENTITY, evicted_to_host=bool(host))
    world.cache.init_cache_linker(linker)
    return world, linker


@pytest.mark.parametrize("name", CASES)
def test_invariants_hold_after_every_step(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, host, disk = CASES[name]
    monkeypatch.setenv(CONFIG_ENV, config.to_json())
    # Prompts here are of fewer pages than there usually are between two boundaries that are kept.
    monkeypatch.setattr("leankv_sglang.kvcache.tree.trim.keep_every", lambda near_pages: 2 * near_pages)
    late, kind = LateCopies() if name == LATE else None, NarrowValues if name == NARROW else World
    world, linker = world_with(tmp_path, host, disk, kind, seed=len(name), late=late)
    for _ in range(STEPS):
        step(world)
        world.check()
        linker.stack.finish()
        assert not linker.loading
    for req in list(world.running):
        world.finish(req)
        world.check()
    assert not world.allocator.verify_byte_accounting()
    assert not world.pool.ledger.near_locked().any()
    assert world.pool.slot_reader.reads == 0, "every page's id was known on the host"
    assert linker.counts.pages_out > 30
    assert world.loaded_tokens > 0.01 * world.asked_tokens
    assert world.loaded_tokens == linker.counts.pages_in * world.pool.page_size
    linker.stack.finish()
    if host:
        assert 0 < linker.stack.host.counts.bytes <= host
    world.evict(world.pool.ledger.units)
    world.check()
    assert world.allocator.available_size() == world.pool.ledger.units
    world.pool.drain()
    assert int(world.pool.store.ring.free_blocks) == world.pool.store.num_blocks
    linker.close()
