"""Thousands of random steps of serving, every invariant checked after each, every read checked against a fresh page."""

from __future__ import annotations

import os

import pytest

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.kvcache.tree.regret import Regret
from tests.kvcache.late import LateCopies
from tests.kvcache.tree.state_world import StateWorld
from tests.kvcache.tree.window_world import WindowWorld
from tests.kvcache.tree.world import CONTEXT, PAGE, World

LATE = "counts come late"
QUICK = ("default", LATE, "windows", "states")
CASES = {
    "default": (LeanKVConfig(), "lru", (0.5, 0.0)),
    "pruning": (LeanKVConfig(alpha_low=0.1), "lru", (0.3, 0.4)),
    "two pages near": (LeanKVConfig(near_pages=2), "lfu", (0.4, 0.1)),
    "no near part": (LeanKVConfig(near_pages=0, alpha_low=0.1), "lru", (0.3, 0.5)),
    "one tier": (LeanKVConfig(high="k4v2", low="k4v2"), "lru", (0.0, 0.0)),
    LATE: (LeanKVConfig(), "lru", (0.5, 0.0)),
    "demoting, strict": (LeanKVConfig(demote=True), "lru", (0.3, 0.0)),
    "states": (LeanKVConfig(), "lru", (0.5, 0.0)),
    "states, pruning, two pages near": (LeanKVConfig(alpha_low=0.1, near_pages=2), "lru", (0.3, 0.4)),
    "windows": (LeanKVConfig(), "lru", (0.5, 0.0)),
    "windows, pruning, two pages near": (LeanKVConfig(alpha_low=0.1, near_pages=2), "lru", (0.3, 0.4)),
}
STEPS = int(os.environ.get("LEANKV_TREE_STEPS", "120"))
"""For each case; 850 make the five thousand of a full check."""


def prompt(world: World) -> list[int]:
    """Tokens from a small vocabulary in long runs, so that prefixes are shared and branch anywhere."""
    chance, pages = world.random, world.random.randrange(1, 14)
    tokens: list[int] = []
    for _ in range(pages):
        word = chance.randrange(3 if len(tokens) < 4 * PAGE else 6)
        tokens += [word * 7 + i % 5 for i in range(PAGE)]
    return tokens + [99] * chance.randrange(1, PAGE)


KINDS = {"windows": WindowWorld, "states": StateWorld}
"""What is in the name of cases whose model has other layers too."""


def step(world: World) -> None:
    """One thing that happens in a server."""
    chance = world.random
    dice = chance.random()
    if dice < 0.35 or not world.running:
        world.admit(prompt(world), chunk=chance.choice([None, PAGE, 3 * PAGE]))
    elif dice < 0.65:
        req = chance.choice(world.running)
        for _ in range(chance.randrange(1, 2 * PAGE)):
            if not world.decode(req):
                world.drop(chance.choice(world.running))
                return
        world.check_reads(req)
    elif dice < 0.85:
        world.finish(chance.choice(world.running))
    elif dice < 0.92:
        world.drop(chance.choice(world.running))
    elif dice < 0.96:
        world.evict(chance.randrange(1, 8 * PAGE))
        if isinstance(world, WindowWorld):
            world.evict_windows(chance.randrange(1, 8 * PAGE))
        if isinstance(world, StateWorld):
            world.evict_states(chance.randrange(1, 6))
    elif dice < 0.995:
        world.cache.relieve()
    else:
        for req in list(world.running):
            world.drop(req)
        world.cache.reset()
        world.rows.clear()
        world.allocator.clear()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n not in QUICK)])
def test_invariants_hold_after_every_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, policy, tiers = CASES[name]
    monkeypatch.setenv(CONFIG_ENV, config.to_json())
    if config.demote:
        monkeypatch.setattr(Regret, "prefers_dropping", lambda _self: False)
    late = LateCopies() if name == LATE else None
    kind = next((kind for word, kind in KINDS.items() if word in name), World)
    world = kind(pages=40, policy=policy, tiers=tiers, seed=len(name), late=late)
    for _ in range(STEPS):
        step(world)
        world.check()
    for req in list(world.running):
        world.finish(req)
        world.check()
    if late is not None:
        assert late.events
        assert late.waits == 0, "counts of all forwards but the last are there"
    assert not world.allocator.verify_byte_accounting()
    assert not world.pool.ledger.near_locked().any()
    assert world.pool.slot_reader.reads == 0, "every page's id was known on the host"
    assert world.hit_tokens > 0.05 * world.asked_tokens
    assert CONTEXT > 40 * PAGE
    if config.near_pages and name != "one tier":
        assert world.pool.counts.trimmed > 20
        assert world.pool.counts.healed > 0
    if config.demote:
        assert world.pool.counts.demoted > 0
    world.evict(world.pool.ledger.units)
    world.check()
    assert world.pool.ledger.free_units == world.pool.ledger.units
    world.pool.drain()
    assert int(world.pool.store.ring.free_blocks) == world.pool.store.num_blocks
