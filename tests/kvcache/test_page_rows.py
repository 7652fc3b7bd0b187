"""The host's mirror of request rows: it says what it was told, asks for the rest, and is found out where it drifts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.kvcache.free_list import FreeList
from leankv_sglang.kvcache.page_rows import PageRows, SlotReader
from leankv_sglang.kvcache.transfer import copy_out, put
from tests.kvcache.tree.world import PAGE as WORLD_PAGE
from tests.kvcache.tree.world import World

PAGE = 4


def table_of(pages: list[list[int]]) -> torch.Tensor:
    """Slots of rows, row 0 of which is padding."""
    slots = torch.zeros(len(pages) + 1, PAGE * max(map(len, pages)), dtype=torch.int32)
    for row, ids in enumerate(pages, 1):
        slots[row, : PAGE * len(ids)] = (torch.tensor(ids)[:, None] * PAGE + torch.arange(PAGE)).flatten()
    return slots


def request(row: int, prefix: list[int]) -> Any:
    return SimpleNamespace(kv=SimpleNamespace(req_pool_idx=row), prefix_len=PAGE * len(prefix), pages=prefix)


def mirror(pages: list[list[int]]) -> tuple[PageRows, SlotReader]:
    reader = SlotReader(PAGE)
    rows = PageRows(table_of(pages), reader)
    rows.prefix_of = lambda req: np.array(req.pages)
    return rows, reader


def test_a_row_is_its_hit_its_own_pages_and_what_it_was_pointed_to() -> None:
    rows, reader = mirror([[3, 5, 8, 9], [3, 7, 6]])
    rows.begin([request(1, [3, 5]), request(2, [3])])
    rows.offer(np.array([2, 1]), np.array([2, 1]), np.array([8, 9, 4]))
    rows.extended(torch.tensor([1, 2]))
    rows.offer(np.array([2]), np.array([1]), np.array([6]))
    rows.extended(torch.tensor([2]))
    # A request that goes on with its row has its hit already.
    rows.begin([request(2, [1, 1, 1])])
    assert rows.of(2, 3).tolist() == [3, 4, 6]
    assert rows.audit() == ["the host names other pages than the device in 1 places of request rows"]
    rows.put(2, 1, np.array([7]))
    assert rows.of(1, 4).tolist() == [3, 5, 8, 9]
    assert rows.of(2, 3, 1).tolist() == [7, 6]
    assert rows.read(np.array([2, 1, 0]), np.array([0, 3, 2])).tolist() == [3, 9, 0]
    assert rows.audit() == []
    assert reader.reads == 0


def test_what_was_not_told_is_read_from_the_device_and_counted() -> None:
    rows, reader = mirror([[3, 5], [2, 7]])
    rows.begin([request(1, [3])])
    assert rows.of(1, 2).tolist() == [3, 5]
    assert rows.of(2, 2).tolist() == [2, 7]
    assert reader.reads == 2
    rows.put(1, 1, np.array([5]))
    assert rows.of(1, 2).tolist() == [3, 5]
    assert reader.reads == 2
    rows.forget([1])
    rows.of(1, 1)
    assert reader.reads == 3, "what the last owner had is not the next one's"


@pytest.mark.parametrize("who", ["a row of nobody", "another number of rows", "nothing was allocated"])
def test_nothing_is_believed_once_rows_are_written_by_others(who: str) -> None:
    """As beam search does, whose rows belong to no request."""
    rows, reader = mirror([[3, 5], [2, 7]])
    rows.begin([request(1, [3])])
    if who != "nothing was allocated":
        rows.offer(np.array([1, 1]), np.array([1, 1]), np.array([4, 6]))
    rows.extended(torch.tensor([1, 2] if who == "a row of nobody" else [1]))
    assert rows.of(1, 1).tolist() == [3]
    assert reader.reads == 1
    assert rows.audit() == []


@given(st.data(), st.booleans())
def test_free_pages_come_in_the_order_of_sglangs_list(data: st.DataObject, sort: bool) -> None:
    """Which prepends what is given back, and sorts where it is told to."""
    free, model, taken = FreeList(sort), list(range(1, 21)), []
    free.clear(20)
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            count = data.draw(st.integers(0, len(model)))
            model = sorted(model) if sort else model
            expected, model = model[:count], model[count:]
            assert free.take(count).tolist() == expected
            taken += expected
        else:
            back = data.draw(st.permutations(taken))[: data.draw(st.integers(0, len(taken)))]
            free.give(np.array(back, np.int64))
            model = back + model
            taken = [page for page in taken if page not in back]
        assert len(free) == len(model)
        assert sorted(free.ids().tolist()) == sorted(model)
    with pytest.raises(AssertionError, match="more pages are taken"):
        free.take(len(free) + 1)


def test_copies_do_not_share_what_they_copy() -> None:
    numbers = np.arange(3)
    there = put(numbers, "cpu")
    numbers[0] = 9
    assert there.tolist() == [0, 1, 2]
    arrival = copy_out(there)
    assert arrival.here()
    arrival.wait()
    assert arrival.values.tolist() == [0, 1, 2]


# ---- in the whole ----


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig().to_json())
    world = World(pages=40)
    assert world.admit([i % 97 for i in range(5 * WORLD_PAGE + 3)])
    return world


def found(world: World) -> str:
    world.pool.version += 1
    return "; ".join(world.allocator.verify_byte_accounting())


def test_a_row_that_drifts_is_found_at_idle(world: World) -> None:
    row = world.running[0].kv.req_pool_idx
    world.page_rows.put(row, 1, np.array([39]))
    assert "host names other pages than the device in 1 places of request rows" in found(world)


def test_a_node_that_drifts_is_found_at_idle(world: World) -> None:
    world.finish(world.running[0])
    assert found(world) == ""
    (node,) = world.cache.tree_core.root_node.children.values()
    world.cache.paged.pages(node)[2] += 1
    assert "host names other pages than the device in 1 places of the tree" in found(world)


def test_a_free_list_that_drifts_is_found_at_idle(world: World) -> None:
    world.finish(world.running[0])
    slots = world.allocator.alloc(WORLD_PAGE)
    assert slots is not None
    world.pool.ledger.close(world.pool.slot_reader.pages(slots[:1]))
    assert "the free list and the ledger name different pages" in found(world)


def test_slots_of_no_row_are_freed_by_asking(world: World) -> None:
    """As SGLang frees them where allocating has failed half-way, at once or with a group."""
    before = world.allocator.available_size()
    free = set(world.allocator.get_all_free_pages().tolist())
    for grouped in (False, True):
        reads = world.pool.slot_reader.reads
        slots = world.allocator.alloc(3 * WORLD_PAGE)
        assert slots is not None
        if grouped:
            world.allocator.free_group_begin()
        world.allocator.free(slots[WORLD_PAGE:])
        world.allocator.free_segment(slots[:WORLD_PAGE], start_pos=0)
        if grouped:
            assert world.allocator.available_size() == before - 3 * WORLD_PAGE
            world.allocator.free_group_end()
        assert world.allocator.available_size() == before
        assert world.pool.slot_reader.reads == reads + 2
    assert set(world.allocator.get_all_free_pages().tolist()) == free


def test_a_group_holds_back_what_is_released(world: World) -> None:
    req, before = world.running[0], world.allocator.available_size()
    world.allocator.free_group_begin()
    world.drop(req)
    assert world.allocator.available_size() == before
    world.allocator.free_group_end()
    assert world.allocator.available_size() == before + WORLD_PAGE
    assert world.pool.slot_reader.reads == 0
