"""Which block of the CUDA kernels reads what for whom: everything once, and no bit shows how."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import Ops, Plan
from leankv_kernels.cuda import attend_committed, work
from leankv_kernels.cuda.attend import attend_shape
from leankv_kernels.cuda.emulated import EMULATOR
from leankv_kernels.cuda.unit import Unit
from leankv_kernels.cuda.work import WorkLists, work_of
from tests.kernels.cases import Case, store_with
from tests.kernels.draws import random_tier_maps, small_layout
from tests.kernels.driver import Method
from tests.kernels.kernelutil import dice, few
from tests.kernels.trees import TreeBatch, decode_batch, random_batch
from tests.kernels.witness import Witness

SPLIT = 4  # pages
PART_BYTES = 1000


def lists_of(plan: Plan, together: int, heads: int = 2) -> WorkLists:
    return work_of(plan, together, heads, SPLIT, PART_BYTES)


def pages_of(plan: Plan, tile: int, split: int) -> list[tuple[int, bool]]:
    """What a tile reads in a split, and what of it near."""
    before, first = plan.page_index[tile], int(plan.tiles[tile, 4])
    numbers = range(split * SPLIT, min((split + 1) * SPLIT, before))
    return [(int(plan.pages[first + n]), n >= before - plan.near_pages) for n in numbers]


def check(plan: Plan, lists: WorkLists, together: int) -> None:
    """Every split of every query is read once, with others only where all read it alike; states that pass through
    memory have places of their own, and a block that reads all splits needs none.
    """
    read: Counter[tuple[int, int]] = Counter()
    places: dict[int, set[int]] = {}
    for several, items, table, queries in lists.works:
        assert table[0].tolist() == [items, 0, 0, 0]
        assert len(table) == items + 1
        for split, splits, first, size in table[1:].tolist():
            assert 1 <= size <= (together if several else 1)
            taken = [int(plan.token_tile[q]) for q in queries[first : first + size, 0]]
            needed = [max(1, -(-plan.page_index[tile] // SPLIT)) for tile in taken]
            for tile in taken:
                assert pages_of(plan, tile, split) == pages_of(plan, taken[0], split)
            if splits:
                assert (split, needed) == (0, [splits] * size)
            else:
                assert max(needed) > 1
            for (query, place), need in zip(queries[first : first + size].tolist(), needed, strict=True):
                read.update((query, s) for s in (range(splits) if splits else [split]))
                if not splits:
                    places[query] = set(range(place, place + need))
    splits_of = [max(1, -(-n // SPLIT)) for n in plan.page_index]
    tiles = plan.token_tile.tolist()
    assert read == Counter((q, s) for q, tile in enumerate(tiles) for s in range(splits_of[tile]))
    assert sum(map(len, places.values())) == len(set().union(*places.values()))
    assert set().union(*places.values()) <= set(range(lists.parts))


@few(200)
@given(rng=dice)
def test_everything_is_read_once_and_together_only_what_is_read_alike(rng: Random) -> None:
    batch, together = random_batch(rng, 8, 64, 40), rng.choice((1, 2, 2, 3, 5, 16))
    plan = batch.plan(cascade=rng.random() < 0.8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "ENOUGH_BLOCKS", rng.choice((1, 6, 4096)))
        patch.setattr(work, "MOST_PART_BYTES", rng.choice((1, 20_000, 1 << 28)))
        check(plan, lists_of(plan, together), together)


def test_a_prefix_is_read_by_as_few_blocks_as_can_be() -> None:
    shared = [*range(1, 10)]
    plan = decode_batch([[*shared, 20 + i] for i in range(7)] + [[30]]).plan()
    lists = lists_of(plan, 3)
    assert [(x.together, x.items) for x in lists.works] == [(True, 2 * 2), (False, 2 * 1 + 7 + 1)]
    assert lists.parts == 7 * 3
    assert lists_of(plan, 1).works[0].items == 7 * 3 + 1
    assert work_of(plan, 3, 2, SPLIT, PART_BYTES) is lists


def test_tiles_of_a_prompt_are_read_without_states_in_memory_where_blocks_are_enough() -> None:
    """4,096 of them; and where the states would take too much."""
    plan = TreeBatch([[*range(1, 10)]], [64], [0], 64, 1).plan()
    assert lists_of(plan, 2, heads=128).parts == 0
    assert lists_of(plan, 2, heads=127).parts == 64 * 3
    assert work_of(plan, 2, 127, SPLIT, work.MOST_PART_BYTES // (64 * 3) + 1).parts == 0


def test_nothing_is_shared_where_the_host_does_not_know_the_pages() -> None:
    plan = decode_batch([[1, 2, 3]] * 4).plan(cascade=False)
    assert [x.together for x in lists_of(plan, 4).works] == [False]


class _FewBlocks:
    """A launcher whose grids are as small as those of a graph that was captured for less."""

    def launch(
        self, unit: Unit, kernel: str, grid: Sequence[int], args: ctypes.Structure, device: torch.device
    ) -> None:
        EMULATOR.launch(unit, kernel, (min(grid[0], 3), *grid[1:]), args, device)


@few(10)
@given(rng=dice)
def test_no_bit_shows_what_is_read_together(cuda: Ops, rng: Random) -> None:
    """With others, without, all splits in one block, and by blocks that take several entries."""
    layout = small_layout("k8v4,k4v2", page_size=128, num_kv_heads=2, head_dim=64)
    case = Case(Method(layout, 1), 3, torch.bfloat16)
    store, batch = store_with(case, random_tier_maps(rng, layout, 8), calm=True), random_batch(rng, 8, 128, 20)
    # A prefix of a split and more, behind which requests end in the same split or in others.
    prefix = [rng.randint(1, 8) for _ in range(rng.randint(8, 17))]
    batch.lists[:] = [prefix * (rng.random() < 0.8) + pages for pages in batch.lists]
    q, attended = case.tokens(sum(batch.queries), rng.getrandbits(32)).q, []

    def attend(cascade: bool, launcher: object = EMULATOR) -> None:
        plan = batch.plan(cascade=cascade)
        attended.append(attend_committed(launcher, q, store, 0, plan, 0.1, "hadamard"))  # type: ignore[arg-type]

    attend(cascade=False)
    attend(cascade=True)
    attend(cascade=True, launcher=_FewBlocks())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "ENOUGH_BLOCKS", 1)
        attend(cascade=True)
    for out, lse in attended[1:]:
        assert torch.equal(out, attended[0][0])
        assert torch.equal(lse, attended[0][1])


def test_shared_pages_are_read_as_the_specification_reads_them(cuda: Ops, ops: Ops) -> None:
    layout = small_layout("k8v4,k4v2", page_size=128, num_kv_heads=2, head_dim=128)
    case = Case(Method(layout, 1), 4, torch.bfloat16)
    shared = [1 + i % 7 for i in range(17)]
    batch = decode_batch([shared, *([*shared, 8, *range(1, 1 + i)] for i in range(4))], 128)
    plan, together = batch.plan(), attend_shape(layout, 4, many=True).queries
    assert together == 2
    assert [x.together for x in work_of(plan, together, 2, 8, 4 * 8 * 130).works] == [True, False]
    q: Tensor = case.tokens(5, 3).q
    store = store_with(case, random_tier_maps(Random(1), layout, 8), calm=True)
    Witness(cuda, ops).attend_committed(q, store, 0, plan, 0.1, "hadamard")
