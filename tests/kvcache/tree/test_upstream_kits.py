"""SGLang's own fuzz of locks, inserts, matches and evictions, on our cache."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from tests.kvcache.tree.world import PAGE, World

# The kits import sglang's benchmarks, and these a package for downloads that nothing here uses.
_datasets = ModuleType("datasets")
_datasets.load_dataset = None  # type: ignore[attr-defined]
sys.modules.setdefault("datasets", _datasets)

from sglang.test.kits.unified_radix_cache import insert_walk  # noqa: E402
from sglang.test.kits.unified_radix_cache.config import CacheConfig  # noqa: E402


def our_fixture(_config: Any) -> tuple[Any, Any, Any]:
    """The kit's fixture with our pool, allocator and tree; it asks for sliding windows wherever it goes."""
    world = World(pages=30)
    allocator: Any = world.allocator
    allocator.free_swa = lambda _slots: None
    lock = world.cache.inc_lock_ref

    def inc_lock_ref(*args: Any, **kwargs: Any) -> Any:
        receipt = lock(*args, **kwargs)
        receipt.component_lock_uuids[ComponentType.SWA] = None
        return receipt

    world.cache.inc_lock_ref = inc_lock_ref  # type: ignore[method-assign]
    WORLDS.append(world)
    return world.cache, allocator, world.rows


WORLDS: list[World] = []


@pytest.mark.parametrize("seed", range(6))
def test_segment_lock_fuzz(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig().to_json())
    monkeypatch.setattr(insert_walk, "build_fixture", our_fixture)
    params = insert_walk.InsertParams
    monkeypatch.setattr(insert_walk, "InsertParams", lambda key, value, **_swa: params(key=key, value=value))
    kit: Any = insert_walk.SegmentLockFuzzFixtures()
    kit.cfg = CacheConfig(components=(ComponentType.FULL,), page_size=PAGE)
    # Sequences of 2 to 20 pages on a pool of 30, so that it evicts.
    kit._run_seed(seed, steps=200)
    world = WORLDS.pop()
    assert world.cache.protected_size() == 0
    assert not world.pool.ledger.near_locked().any()
    held = world.cache.evictable_size()
    assert world.allocator.available_size() + held == world.pool.ledger.units
    assert world.pool.ledger.audit() == []
