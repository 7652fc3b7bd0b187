"""Pages that requests share are read once for all of them, and no bit shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import PRUNED, TIERS, Ops, Plan, RecordLayout, RecordStore, Tier, build_plan, cascade
from tests.kernels.cases import Case, random_tiers, simple, store_with
from tests.kernels.draws import HEAD_DIMS, INTERPRETED, PAIRS, TIER_MAPS, pair_name, small_layout
from tests.kernels.driver import Method
from tests.kernels.kernelutil import Backend, dice, few
from tests.kernels.trees import TreeBatch, decode_batch, random_batch, random_lists
from tests.kernels.witness import Witness

Attended = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Whatever a test chooses ends with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def groups_of_any_size() -> Iterator[None]:
    """Groups are made wherever they save anything."""
    with pytest.MonkeyPatch.context() as patch:
        for name, least in (("LEAST_TILES", 2), ("LEAST_TOKENS", 1), ("LEAST_SAVED", 1)):
            patch.setattr(cascade, name, least)
        yield


@pytest.fixture
def every_group() -> Iterator[None]:
    """See ``groups_of_any_size``."""
    with groups_of_any_size():
        yield


# The plan


def groups_of(plan: Plan) -> list[tuple[list[int], int, int, int]]:
    """Tiles, first page, page behind the last and depth of each group."""
    rows = plan.groups.tolist()
    return [(plan.members[at : at + n].tolist(), start, end, depth) for at, n, start, end, depth in rows]


@pytest.mark.usefixtures("every_group")
def test_one_prefix_is_one_group() -> None:
    shared = [5, 3, 9, 1, 7]
    plan = decode_batch([[*shared, 11, 12], [*shared, 13], [2, 4], [*shared, 14, 15, 16]]).plan()
    assert groups_of(plan) == [([0, 1, 3], 0, 5, 0)]


@pytest.mark.usefixtures("every_group")
def test_prefixes_that_branch_are_nested_groups() -> None:
    """A system prompt for all, on top of it examples for two."""
    system, examples = [1, 2, 3, 4], [5, 6, 7, 8, 9]
    lists = [[*system, *examples, 10], [*system, 11, 12], [*system, *examples, 13], [*system, 14, 15]]
    assert groups_of(decode_batch(lists).plan()) == [([0, 1, 2, 3], 0, 4, 0), ([0, 2], 4, 9, 1)]


@pytest.mark.usefixtures("every_group")
def test_a_group_ends_where_a_near_part_begins_for_some_only() -> None:
    pages = [*range(1, 9)]
    plan = decode_batch([pages, [*pages, 20], [*pages, 21, 22]], near_pages=2).plan()
    assert groups_of(plan) == [([0, 1, 2], 0, 6, 0), ([1, 2], 6, 7, 1)]


@pytest.mark.usefixtures("every_group")
def test_tiles_at_one_page_share_their_near_pages_too() -> None:
    pages = [*range(1, 9)]
    assert groups_of(decode_batch([pages] * 3, near_pages=2).plan()) == [([0, 1, 2], 0, 8, 0)]


@pytest.mark.usefixtures("every_group")
def test_nothing_is_shared_across_a_difference() -> None:
    """Equal ids behind it are other places of the sequence."""
    assert groups_of(decode_batch([[1, 2, 3, 4, 5, 6], [9, 2, 3, 4, 5, 6]]).plan()) == []


@pytest.mark.usefixtures("every_group")
@pytest.mark.parametrize("queries", [2, 64])
def test_only_decode_is_grouped(queries: int) -> None:
    batch = decode_batch([[*range(1, 9)]] * 3)
    plan = replace(batch, queries=[1, queries, 1], inside=[3, 0, 3]).plan()
    assert groups_of(plan) == [([0, 2], 0, 8, 0)]


@pytest.mark.parametrize(
    ("requests", "shared", "worth"), [(2, 99, False), (3, 15, False), (3, 16, True), (30, 7, False)]
)
def test_a_group_has_to_be_worth_it(requests: int, shared: int, worth: bool) -> None:
    """Pages of 64 that so many requests share."""
    lists = [[*range(1, 1 + shared), 200 + i] for i in range(requests)]
    assert groups_of(decode_batch(lists).plan()) == ([([*range(requests)], 0, shared, 0)] if worth else [])


def test_what_is_not_worth_a_group_is_read_by_those_below() -> None:
    lists = [[1, *range(2 + 50 * (i % 2), 30 + 50 * (i % 2)), 200 + i] for i in range(6)]
    assert groups_of(decode_batch(lists).plan()) == [([0, 2, 4], 0, 29, 0), ([1, 3, 5], 0, 29, 0)]


def test_cascade_can_be_switched_off() -> None:
    lists = [[*range(1, 99)]] * 3
    assert groups_of(decode_batch(lists).plan())
    assert groups_of(decode_batch(lists).plan(cascade=False)) == []


def test_ids_may_come_from_the_host() -> None:
    """Where the plan's tensors are not in main memory: what they will hold, or nothing is looked for."""
    slots = torch.zeros(3, 99 * 64, dtype=torch.int32, device="meta")
    batch = (torch.arange(3, device="meta"), [80 * 64 + 1] * 3, [1] * 3, slots, 64, 0)
    assert build_plan(*batch).groups.shape == (0, cascade.COLUMNS)
    grouped = build_plan(*batch, host_pages=np.array([*range(80)] * 3))
    assert grouped.groups.shape == (1, cascade.COLUMNS)
    assert grouped.members.shape == (3,)


def readings(batch: TreeBatch) -> list[list[tuple[int, bool]]]:
    """Of each request its pages, and whether it reads them near."""
    return [[(page, i >= len(pages) - batch.near_pages) for i, page in enumerate(pages)] for pages in batch.lists]


@few(300)
@given(rng=dice)
def test_groups_cover_exactly_what_is_shared(rng: Random) -> None:
    """Any tree: what is in a group is read alike, groups follow each other from the first page on, and no prefix is
    read more often than there are requests that differ in it.
    """
    with groups_of_any_size():
        batch = replace(decode_batch(random_lists(rng, rng.randint(1, 12), 6, 40)), near_pages=rng.randint(0, 3))
        read, groups = readings(batch), groups_of(batch.plan())
    reached = [0] * len(read)
    depths = [0] * len(read)
    for tiles, start, end, depth in groups:
        assert len(tiles) > 1
        assert tiles == sorted(tiles)
        for tile in tiles:
            assert read[tile][start:end] == read[tiles[0]][start:end]
            assert (reached[tile], depths[tile]) == (start, depth)
            reached[tile], depths[tile] = end, depth + 1
    assert [depth for *_, depth in groups] == sorted(depth for *_, depth in groups)
    times = sum(end - start for _, start, end, _ in groups) + sum(map(len, read)) - sum(reached)
    assert times == len({tuple(pages[: i + 1]) for pages in read for i in range(len(pages))})


# The bits


def attend(ops: Ops, case: Case, store: RecordStore, plan: Plan, q: Tensor, threads: int = 1) -> Attended:
    torch.set_num_threads(threads)
    return ops.attend_committed(q, store, 0, plan, 0.1, case.method.rotation)


def assert_same_bits(fast: Backend, case: Case, store: RecordStore, batch: TreeBatch, seed: int = 9) -> None:
    """Grouped, with any number of threads, and ungrouped."""
    q = case.tokens(sum(batch.queries), seed).q
    want = attend(fast.ops, case, store, batch.plan(cascade=False, device=fast.device), q)
    grouped = batch.plan(device=fast.device)
    for threads in (1, 2, 5) if fast.ops.name == "cpu" else (1,):
        for a, b in zip(attend(fast.ops, case, store, grouped, q, threads), want, strict=True):
            assert torch.equal(a, b)


def case_with(layout: RecordLayout, group: int, fast: Backend, near_pages: int = 1) -> Case:
    return Case(Method(layout, near_pages), group, torch.bfloat16, fast.device)


def store_of(case: Case, rng: Random, pages: int) -> RecordStore:
    """Pages 1 to ``pages``, each with a pattern of tiers of its own; some without a record."""
    shape = (case.method.layout.num_kv_heads, case.page)
    tiers = torch.stack([rng.choice([*TIER_MAPS.values()])(shape, rng.getrandbits(32)) for _ in range(pages)])
    if rng.random() < 0.3:
        tiers[:, 0] = PRUNED  # a head that reads nothing, but for near pages
    store = store_with(case, tiers, calm=True)
    if rng.random() < 0.3:
        store.free(torch.tensor([pages], device=case.device))
    return store


@few(60, interpreted=4)
@given(rng=dice)
def test_any_tree_gives_the_bits_of_each_request_alone(fast: Backend, rng: Random) -> None:
    """All tiers, near pages, query groups and widths; splits of 1,024 tokens end inside groups and at their ends."""
    layout = RecordLayout(
        rng.choice((16,) if INTERPRETED else (64, 128, 256)),
        rng.randint(1, 3),
        rng.choice((64, 80) if INTERPRETED else HEAD_DIMS),
        *rng.choice(PAIRS),
        near=rng.random() < 0.7,
    )
    case = case_with(layout, rng.choice((1, 2, 3, 3, 4, 5, 6, 7, 8)), fast)
    store = store_of(case, rng, 8)
    with groups_of_any_size() if rng.random() < 0.7 else nullcontext():
        batch = random_batch(rng, 8, layout.page_size, 3 if INTERPRETED else 2600 // layout.page_size)
        assert_same_bits(fast, case, store, batch, rng.getrandbits(32))


@pytest.mark.parametrize("pair", PAIRS[:1] if INTERPRETED else PAIRS, ids=pair_name)
@pytest.mark.parametrize("head_dim", (64,) if INTERPRETED else (64, 96, 256))
def test_every_pair_of_tiers(fast: Backend, pair: tuple[Tier, Tier], head_dim: int) -> None:
    """Enough rows for panels, which each request alone does without."""
    layout = RecordLayout(64, 2, head_dim, *pair, near=head_dim != 96)
    case = case_with(layout, 3, fast)
    store = store_of(case, Random(head_dim), 8)
    requests = 2 if INTERPRETED else 5
    shared = [1, 2, 3, 4] if INTERPRETED else [1 + i % 7 for i in range(18)]
    assert_same_bits(fast, case, store, decode_batch([[*shared, *range(1, 1 + i)] for i in range(requests)]))


@pytest.mark.usefixtures("every_group")
@pytest.mark.parametrize("group", (3,) if INTERPRETED else (*range(1, 9), 64))
def test_every_number_of_rows(fast: Backend, group: int) -> None:
    """Few, whole blocks of 64, and beyond: 2 to 33 requests, of which one ends with the shared pages."""
    case = case_with(small_layout(page_size=64), group, fast, near_pages=2)
    store, shared = store_of(case, Random(group), 8), [1, 2, 3, 4, 5]
    for requests in (2,) if INTERPRETED else (2, 3, 5, 9, 33):
        lists = [shared, *([*shared, 6 + i % 2] for i in range(requests - 1))]
        assert_same_bits(fast, case, store, decode_batch(lists, near_pages=2))


@pytest.mark.usefixtures("every_group")
@pytest.mark.parametrize("near_pages", range(4))
def test_a_request_at_the_end_of_the_shared_pages(fast: Backend, near_pages: int) -> None:
    """Its near pages reach into them; the others read the same pages far, or near as well."""
    case = replace(simple(near_pages), dtype=torch.bfloat16, device=fast.device)
    store, shared = store_with(case, random_tiers(8), calm=True), [3, 1, 2, 5]
    for tails in ([[], [6]], [[], [], [6, 7, 8]], [[], [6], [7, 8], [6, 7, 8]], [[], []])[: 1 if INTERPRETED else 4]:
        lists = [[*shared, *tail] for tail in tails]
        assert_same_bits(fast, case, store, decode_batch(lists, case.page, near_pages))


@pytest.mark.usefixtures("every_group")
def test_close_to_the_specification(fast: Backend, ops: Ops) -> None:
    rng = Random(4)
    shared = [1, 2] if INTERPRETED else [1 + i % 8 for i in range(20)]
    for pair in ("k8v4,k4v2", "k4v2,k4v2", "k8v4,k8v4")[: 1 if INTERPRETED else 3]:
        case = case_with(small_layout(pair, page_size=64), 3, fast)
        batch = decode_batch([shared, [*shared, 3], [*shared, 4, 5], [*shared, 4, 6]])
        q = case.tokens(len(batch.lists), 1).q
        plan, store = batch.plan(device=fast.device), store_of(case, rng, 8)
        assert fast.device != "cpu" or len(plan.groups) == 3
        Witness(fast.ops, ops).attend_committed(q, store, 0, plan, 0.1, "hadamard")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_cpu_kernels_read_shared_pages_for_the_first_member_alone(isa: str, threads: int) -> None:
    """Not a silent no-op: what the others list in place of shared pages does not matter."""
    from tests.kernels.kernelutil import backend_named

    with backend_named(f"cpu-{isa}") as fast:
        layout = RecordLayout(64, 2, 64, TIERS["k8v4"], TIERS["k4v2"])
        case = case_with(layout, 3, fast)
        store, shared = store_of(case, Random(1), 8), [1 + i % 7 for i in range(20)]
        lists = [[*shared, *(1 + (i + j) % 8 for j in range(2 + i % 3))] for i in range(6)]
        plan = decode_batch(lists).plan()
        assert groups_of(plan) == [([0, 1, 2, 3, 4, 5], 0, 20, 0)]
        pages = plan.pages.clone()
        for start in plan.page_indptr[1:-1]:
            pages[start : start + len(shared)] = 0
        q = case.tokens(len(lists), 3).q
        results = [attend(fast.ops, case, store, p, q, threads) for p in (plan, replace(plan, pages=pages))]
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
