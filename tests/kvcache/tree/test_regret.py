"""Near parts or leaves: what goes first is what was seen to cost less."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.kvcache.tree.regret import Regret, marks_after
from tests.kvcache.tree.test_trim import serve, text
from tests.kvcache.tree.world import PAGE, World

UNITS, SIZE = 10_000, 100


def insert(regret: Regret, parted: int = 0, marks: Sequence[int] = ()) -> None:
    regret.inserted(100, 40.0, parted, marks, SIZE)


def test_near_parts_go_first_where_requests_part_at_ends() -> None:
    regret = Regret(UNITS, 1000)
    assert not regret.prefers_dropping()
    for _ in range(200):
        insert(regret)
    assert regret.trim_rate == 0
    assert not regret.prefers_dropping()


def test_leaves_go_first_where_requests_part_anywhere_until_they_come_again() -> None:
    regret = Regret(UNITS, 1000)
    for _ in range(50):
        insert(regret, parted=50)
    assert regret.prefers_dropping()
    regret.dropped(5000, range(50))
    for mark in range(50):
        insert(regret, parted=50, marks=[mark])
    assert regret.drop_rate > 0.5
    for mark in range(1000, 1100):
        regret.dropped(10, [mark])
        insert(regret, parted=4, marks=[mark])
    assert not regret.prefers_dropping()


def test_a_page_is_lost_once_and_what_was_seen_fades() -> None:
    regret = Regret(UNITS, 3)
    regret.dropped(1000, [1, 2, 3, 4])
    insert(regret, marks=[1])
    first = regret.drop_rate
    insert(regret, marks=[2, 3])
    assert regret.drop_rate > first, "the last three are remembered"
    again = regret.drop_rate
    insert(regret, marks=[2, 3])
    assert regret.drop_rate <= again
    for _ in range(1000):
        insert(regret)
    assert regret.drop_rate < 0.02


def test_marks_stand_for_all_tokens_up_to_a_page() -> None:
    one, other = marks_after(0, bytes(range(64)), 16), marks_after(0, bytes(range(1, 65)), 16)
    assert len(one) == 4
    assert not set(one) & set(other)
    assert marks_after(one[1], bytes(range(32, 64)), 16) == one[2:]
    assert marks_after(1, bytes(range(64)), 16)[-1] != one[-1]
    assert marks_after(0, bytes(15), 16) == []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig().to_json())
    return World(pages=64)


def test_the_tree_tells_where_requests_part(world: World) -> None:
    """Going on from an end costs nothing; from inside, all pages back to the last end; at a branch nothing again."""
    told: list[int] = []
    regret = world.cache.paged.regret
    insert_as_ever = regret.inserted

    def inserted(units: int, near: float, parted: int, marks: Sequence[int], size: int) -> None:
        told.append(parted // PAGE)
        assert len(marks) * PAGE == units
        insert_as_ever(units, near, parted, marks, size)

    regret.inserted = inserted  # type: ignore[method-assign]
    serve(world, text(8))
    serve(world, text(8)[:-1] + [7] * (2 * PAGE + 1))
    assert told == [0, 0]
    serve(world, text(5)[:-1] + [6] * (3 * PAGE + 1))
    assert told == [0, 0, 5]
    serve(world, text(5)[:-1] + [4] * (3 * PAGE + 1))
    assert told == [0, 0, 5, 0]
    serve(world, text(7)[:-1] + [3] * (3 * PAGE + 1))
    assert told == [0, 0, 5, 0, 2]
    world.check()


def test_without_near_parts_nothing_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig(near_pages=0).to_json())
    world = World(pages=64)
    paged = world.cache.paged
    monkeypatch.setattr(paged, "marks", lambda _node: pytest.fail("a mark was worked out"))
    serve(world, text(8))
    serve(world, text(5)[:-1] + [6] * (3 * PAGE + 1))
    world.evict(world.pool.ledger.units)
    assert world.allocator.available_size() == world.pool.ledger.units
    assert not paged.regret.prefers_dropping()
