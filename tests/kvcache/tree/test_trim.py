"""What is trimmed, in which order, where hits may end, and that a recomputed page is healed."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from leankv_kernels.layout import LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR
from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.kvcache.tree.shrink import ShrinkStep
from leankv_sglang.kvcache.tree.trim import keep_every, legal_end, trim_steps
from tests.kvcache.late import LateCopies
from tests.kvcache.tree.world import PAGE, World

PAGES = 24


def make(monkeypatch: pytest.MonkeyPatch, config: LeanKVConfig = LeanKVConfig(), pages: int = 64) -> World:  # noqa: B008
    monkeypatch.setenv(CONFIG_ENV, config.to_json())
    return World(pages=pages)


def text(pages: int, seed: int = 0) -> list[int]:
    return [(seed * 1000 + i) % 997 for i in range(pages * PAGE)] + [5]


def hit(world: World, tokens: list[int]) -> int:
    """Pages of a hit."""
    params = MatchPrefixParams(key=RadixKey(array("q", tokens), None))
    return int(world.cache.match_prefix(params).device_prefix_len) // PAGE


def pages_of(world: World, tokens: list[int]) -> np.ndarray:
    """Logical pages the tree holds for a text, whatever their level."""
    core, found = world.cache.tree_core, []
    node, offset = core.root_node, 0
    key = RadixKey(array("q", tokens), None).page_aligned(PAGE)
    while offset < len(key) and (node := node.children.get(key.child_key_at(offset, PAGE))):
        found.append(world.cache.paged.pages(node))
        offset += len(node.key)
    return np.concatenate(found)


def levels(world: World, tokens: list[int]) -> list[int]:
    return world.pool.ledger.level[pages_of(world, tokens)].tolist()


def serve(world: World, tokens: list[int]) -> None:
    assert world.admit(tokens)
    world.finish(world.running[-1])


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 4))
def test_legal_end_is_the_last_boundary_whose_near_pages_are_whole(full: list[bool], near_pages: int) -> None:
    ends = [e for e in range(len(full) + 1) if all(full[max(e - near_pages, 0) : e])]
    assert legal_end(np.array(full, bool), near_pages) == max(ends)


@given(st.integers(0, 100), st.integers(1, 80), st.booleans(), st.integers(0, 5))
def test_trimming_leaves_boundaries_that_hits_may_use(start: int, count: int, ends: bool, near_pages: int) -> None:
    steps = trim_steps(start, count, ends, near_pages)
    assert len(steps) == count
    for k in (0, 1):
        # A page stays while a boundary that is still wanted lies at most that many pages behind it.
        for i in np.flatnonzero(steps > k):
            behind = range(start + i + 1, start + i + 1 + near_pages)
            node_end = start + count
            assert any((e % keep_every(near_pages) == 0 and k == 0) or e == node_end for e in behind)
    if ends and near_pages:
        assert (steps[-near_pages:] == 2).all()
    if near_pages == 0:
        assert not steps.any()


def test_interior_pages_go_first_then_boundaries_and_ends_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)
    serve(world, text(PAGES))
    assert levels(world, text(PAGES)) == [LEVEL_NEAR] * PAGES
    assert world.cache.paged.shrinker.step(ShrinkStep.TRIM_INSIDE) > 0
    world.check()
    want = [LEVEL_FAR] * PAGES
    want[15] = want[-1] = LEVEL_NEAR
    assert levels(world, text(PAGES)) == want
    assert hit(world, text(PAGES)) == PAGES
    assert hit(world, text(20)[:-1] + [6] * PAGE) == 16
    assert world.cache.paged.shrinker.step(ShrinkStep.TRIM_INSIDE) == 0
    world.cache.paged.shrinker.begin()
    assert world.cache.paged.shrinker.step(ShrinkStep.TRIM_BOUNDARIES) > 0
    assert levels(world, text(PAGES))[15] == LEVEL_FAR
    # The end of a prompt that matching has made a node of stays, as the end of a branch does.
    assert levels(world, text(PAGES))[-1] == LEVEL_NEAR
    assert hit(world, text(15)) == 0
    world.check()


def test_branch_points_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)
    serve(world, text(8))
    other = text(4)[:-1] + [6] * (4 * PAGE) + [5]
    serve(world, other)
    while world.cache.paged.shrinker.step(ShrinkStep.TRIM_BOUNDARIES):
        pass
    assert levels(world, text(8)) == [2, 2, 2, 3, 2, 2, 2, 3]
    assert hit(world, other) == 8
    assert hit(world, text(4)) == 4
    world.check()


def test_what_a_running_request_reads_near_is_never_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, LeanKVConfig(near_pages=2))
    assert world.admit(text(6))
    first = world.running[-1]
    serve(world, text(10))
    while world.cache.paged.shrinker.step(ShrinkStep.TRIM_BOUNDARIES):
        pass
    assert levels(world, text(10)) == [2, 2, 2, 2, 3, 3, 2, 2, 3, 3]
    world.check_reads(first)
    for _ in range(2 * PAGE):
        assert world.decode(first)
        world.check_reads(first)
    world.finish(first)
    world.cache.paged.shrinker.begin()
    while world.cache.paged.shrinker.step(ShrinkStep.TRIM_BOUNDARIES):
        pass
    assert levels(world, text(10))[:6] == [2] * 4 + [3, 3], "a branch point: the first request went on otherwise"
    world.check()


def test_a_recomputed_page_is_healed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)
    serve(world, text(10))
    while world.cache.paged.shrinker.step(ShrinkStep.TRIM_BOUNDARIES):
        pass
    before = pages_of(world, text(10))
    assert hit(world, text(6)) == 0
    serve(world, text(6))
    assert (pages_of(world, text(10)) == before).all(), "rows may name the tree's pages"
    assert levels(world, text(10)) == [3] * 6 + [2] * 3 + [3]
    assert hit(world, text(6)) == 6
    assert world.pool.counts.healed == 6
    world.check()


def test_a_page_is_healed_before_its_counts_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for them; the tree's page costs its worst meanwhile, and what its record takes (see ``check``) once
    they are here."""
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig().to_json())
    late = LateCopies()
    world = World(pages=64, late=late)
    serve(world, text(10))
    late.arrive()
    world.pool.commits.settle(all_of_them=True)
    while world.cache.paged.shrinker.step(ShrinkStep.TRIM_BOUNDARIES):
        pass
    held = pages_of(world, text(10))[:6]
    assert world.admit(text(6))
    assert world.pool.counts.healed == 6
    assert (world.pool.ledger.price[held] == PAGE).all()
    late.arrive()
    world.finish(world.running[0])
    assert late.waits == 0
    world.check()
    assert not world.allocator.verify_byte_accounting()
    assert world.pool.ledger.settled[held].all()


@pytest.mark.parametrize(("match", "far"), [("strict", 0), ("relaxed", 8)])
def test_strict_matches_never_reach_a_demoted_page(monkeypatch: pytest.MonkeyPatch, match: str, far: int) -> None:
    world = make(monkeypatch, LeanKVConfig(demote=True, match=match))
    serve(world, text(4))
    serve(world, text(8))
    top = world.cache.tree_core.root_node.children
    paged = world.cache.paged
    first = next(iter(top.values()))
    assert len(paged.pages(first)) == 4
    assert paged.shrinker.shrink(first, ShrinkStep.DEMOTE) > 0
    assert levels(world, text(8)) == [LEVEL_BASE] * 4 + [LEVEL_NEAR] * 4
    world.check()
    assert hit(world, text(8)) == far
    if match == "strict":
        serve(world, text(8))
        assert levels(world, text(8)) == [LEVEL_NEAR] * 8, "healed by recomputation"
        assert hit(world, text(8)) == 8
    world.check()


def test_pressure_trims_before_it_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, pages=30)
    for seed in range(3):
        serve(world, text(9, seed))
    assert world.allocator.available_size() < 6 * PAGE
    serve(world, text(9, 7))
    for seed in (0, 1, 2, 7):
        assert len(pages_of(world, text(9, seed))) == 9
        assert hit(world, text(9, seed)) == 9
    assert world.pool.counts.trimmed > 0
    world.check()
