"""The plan against a model that walks token by token."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import Plan, build_plan
from tests.kernels.draws import generator
from tests.kernels.kernelutil import dice, few

PAGE_SIZES = (16, 64, 128)


@dataclass
class Tile:
    """The queries of one request that lie in one page."""

    request: int
    page: int
    positions: list[int] = field(default_factory=list)  # inside the page


@dataclass(frozen=True)
class Batch:
    """Prefix and extend lengths per request, and where their slots are."""

    page_size: int
    prefix: list[int]
    extend: list[int]
    rows: list[int]
    req_to_token: Tensor = field(repr=False)

    @staticmethod
    def of(page_size: int, lengths: list[tuple[int, int]], seed: int = 0) -> Batch:
        """Rows and pages in random order."""
        rows = torch.randperm(len(lengths) + 3, generator=generator(seed))[: len(lengths)].tolist()
        width = max([-(-(p + e) // page_size) for p, e in lengths], default=0) + 1
        pages = torch.randperm((len(lengths) + 3) * width, generator=generator(seed + 1)) + 1
        slots = pages.view(-1, width, 1) * page_size + torch.arange(page_size)
        return Batch(page_size, [p for p, _ in lengths], [e for _, e in lengths], rows, slots.flatten(1).int())

    def plan(self, near_pages: int = 1) -> Plan:
        rows = torch.tensor(self.rows, dtype=torch.int32)
        return build_plan(rows, self.prefix, self.extend, self.req_to_token, self.page_size, near_pages)

    def tiles(self) -> list[Tile]:
        """Token by token, in the batch's order."""
        tiles: list[Tile] = []
        for request, (start, count) in enumerate(zip(self.prefix, self.extend, strict=True)):
            for token in range(start, start + count):
                page, position = divmod(token, self.page_size)
                if not tiles or (tiles[-1].request, tiles[-1].page) != (request, page):
                    tiles.append(Tile(request, page))
                tiles[-1].positions.append(position)
        return tiles

    def page_id(self, request: int, page: int) -> int:
        return int(self.req_to_token[self.rows[request], page * self.page_size]) // self.page_size


def check(batch: Batch) -> None:
    """Every field of the plan against the model."""
    plan, tiles, size = batch.plan(), batch.tiles(), batch.page_size
    assert plan.num_tiles == len(tiles)
    assert plan.num_tokens == sum(batch.extend)
    assert plan.max_queries == max([len(u.positions) for u in tiles], default=0)
    assert plan.q_indptr == [sum(len(u.positions) for u in tiles[:i]) for i in range(len(tiles) + 1)]
    assert plan.request == [u.request for u in tiles]
    assert plan.page_index == [u.page for u in tiles]
    assert plan.offset == plan.first.tolist() == [u.positions[0] for u in tiles]
    assert plan.length.tolist() == [len(u.positions) for u in tiles]
    assert plan.rows.tolist() == [batch.rows[u.request] for u in tiles]
    assert plan.own_pages.tolist() == [batch.page_id(u.request, u.page) for u in tiles]

    tokens = [(i, position, rank) for i, u in enumerate(tiles) for rank, position in enumerate(u.positions)]
    assert list(zip(*(t.tolist() for t in (plan.token_tile, plan.token_pos, plan.token_rank)), strict=True)) == tokens

    full = [i for i, u in enumerate(tiles) if u.positions[-1] == size - 1]
    assert plan.full.tolist() == full
    assert sorted(plan.full.tolist() + plan.open.tolist()) == list(range(len(tiles)))
    assert plan.full_index.tolist() == [tiles[i].page for i in full]

    for i, u in enumerate(tiles):
        assert plan.unwritten[i].tolist() == [position > u.positions[-1] for position in range(size)]
        assert plan.asked[i].tolist() == [rank < len(u.positions) for rank in range(plan.max_queries)]
        seen = plan.causal[i, : len(u.positions)].sum(1).tolist()
        assert seen == [position + 1 for position in u.positions]
        assert bool((plan.causal[i].int().diff(dim=-1) <= 0).all())  # a prefix of the page

    for request in range(len(batch.extend)):
        read = plan.pages[plan.page_indptr[request] : plan.page_indptr[request + 1]].tolist()
        # The last tile of a request reads every page before its own.
        before = max([u.page for u in tiles if u.request == request], default=0)
        assert read == [batch.page_id(request, page) for page in range(before)]
    assert plan.page_indptr[-1] == plan.pages.numel()


@few(120)
@given(rng=dice)
def test_any_batch(rng: Random) -> None:
    def length() -> int:
        return rng.choice((0, 1, rng.randint(0, 40), rng.randint(0, 300)))

    lengths = [(length(), length()) for _ in range(rng.randint(1, 5))]
    check(Batch.of(rng.choice(PAGE_SIZES), lengths, rng.getrandbits(32)))


@pytest.mark.parametrize("page", PAGE_SIZES)
@pytest.mark.parametrize("prefix_pages", [0, 1, 3])
def test_chunks_that_begin_or_end_where_a_page_does(page: int, prefix_pages: int) -> None:
    start = prefix_pages * page
    for prefix in (start, start + 1, start + page - 1):
        for end in (prefix + 1, start + page - 1, start + page, start + page + 1, start + 2 * page, start + 3 * page):
            if end > prefix:
                check(Batch.of(page, [(prefix, end - prefix)]))


def test_decode_is_one_tile_of_one_query_per_request() -> None:
    batch = Batch.of(64, [(0, 1), (63, 1), (64, 1), (200, 1)])
    check(batch)
    plan = batch.plan()
    assert plan.num_tiles == plan.num_tokens == 4
    assert plan.full.tolist() == [1]
    assert plan.full_index.tolist() == [0]


def test_a_request_with_nothing_to_do_has_no_tile_and_reads_no_page() -> None:
    batch = Batch.of(64, [(130, 0), (5, 3), (64, 0)])
    check(batch)
    plan = batch.plan()
    assert plan.request == [1]
    assert plan.page_indptr == [0, 0, 0, 0]


def test_an_empty_batch_has_an_empty_plan() -> None:
    check(Batch.of(64, [(10, 0), (0, 0)]))


def test_near_pages_are_passed_on() -> None:
    assert Batch.of(64, [(0, 1)]).plan(near_pages=7).near_pages == 7
