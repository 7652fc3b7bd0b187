"""Where the tiles of a forward have their raw pages."""

from __future__ import annotations

from random import Random

import pytest
import torch

from leankv_kernels import Plan, RawPages, build_plan
from leankv_sglang.kvcache.open_pages import OpenPages
from leankv_sglang.kvcache.places import find_places, spare_pages

PAGE, LAYERS, ROWS, CONTEXT = 8, 3, 6, 80


def plan_of(prefix: list[int], extend: list[int], rows: list[int]) -> Plan:
    """Of requests in these rows."""
    table = torch.arange(ROWS * CONTEXT, dtype=torch.int32).view(ROWS, CONTEXT)
    return build_plan(torch.tensor(rows), prefix, extend, table, PAGE, 1)


def test_tiles_have_pages_of_their_own_and_each_row_one_of_them() -> None:
    rng = Random(1)
    for _ in range(200):
        rows = rng.sample(range(ROWS), rng.randint(1, 4))
        prefix = [rng.randint(0, 30) for _ in rows]
        plan = plan_of(prefix, [rng.randint(0, 40) for _ in rows], rows)
        if plan.one_tile_per_row:
            continue
        places = find_places(plan, LAYERS, ROWS, 100)
        assert places is not None
        for layer in range(LAYERS):
            at = places.at[layer].tolist()
            assert len(set(at)) == plan.num_tiles
            spare = [page for page in at if page >= LAYERS * ROWS]
            assert spare == [*range(LAYERS * ROWS, LAYERS * ROWS + len(spare))]
            in_row = {page: tile for tile, page in enumerate(at) if page < LAYERS * ROWS}
            assert sorted(in_row) == sorted({layer * ROWS + row for row in plan.rows.tolist()})
            for page, tile in in_row.items():
                assert page == layer * ROWS + int(plan.rows[tile])
            # What a row holds already is not written over.
            assert {tile for tile, offset in enumerate(plan.offset) if offset} <= {*in_row.values()}
            left = dict(zip(places.source.tolist(), places.target[layer].tolist(), strict=True))
            for tile in plan.open.tolist():
                row = layer * ROWS + int(plan.rows[tile])
                assert at[tile] == row or left.pop(at[tile]) == row
            assert not left
        assert find_places(plan, LAYERS, ROWS, len(spare)) is not None
        assert find_places(plan, LAYERS, ROWS, len(spare) - 1) is None


def test_a_forward_never_takes_more_spare_pages_than_are_kept() -> None:
    """The most, for any number of requests that each end a page with their first token, is what is kept."""
    for tokens in (2, 7, 10, 16, 17, 40):
        taken = []
        for requests in range(1, min(ROWS, tokens // 2) + 1):
            extend = [2] * (requests - 1) + [tokens - 2 * (requests - 1)]
            taken.append(plan_of([PAGE - 1] * requests, extend, [*range(requests)]).num_tiles - requests)
        assert max(taken) == spare_pages(tokens, ROWS, PAGE)


@pytest.mark.parametrize("spare", [0, 1, 30], ids=["none", "one", "enough"])
def test_rows_go_on_with_what_was_written(spare: int) -> None:
    """Whether tiles have spare pages or copies: as one request's tokens come in pieces, so they are read."""
    rng = Random(2)
    for _ in range(40):
        pages = OpenPages(LAYERS, ROWS, PAGE, 1, 4, 2, torch.float32, "cpu", RawPages.write, spare)
        rows = rng.sample(range(ROWS), 3)
        tokens = torch.randn(LAYERS, 3, CONTEXT, 1, 4)
        done = [0, 0, 0]
        while any(n < CONTEXT for n in done):
            extend = [min(rng.choice([0, 1, PAGE, rng.randint(1, 30)]), CONTEXT - n) for n in done]
            if not any(extend):
                continue
            plan = plan_of(done, extend, rows)
            new = [torch.cat([tokens[:, i, a : a + n] for i, (a, n) in enumerate(zip(done, extend, strict=True))], 1)]
            for layer in range(LAYERS):
                raw = pages.raw(layer, plan, new[0][layer], -new[0][layer])
                for tile, at in enumerate(raw.at.tolist()):
                    begin, end = plan.page_index[tile] * PAGE, plan.offset[tile] + int(plan.length[tile])
                    wanted = tokens[layer, plan.request[tile], begin : begin + end]
                    assert torch.equal(raw.key[at, :end], wanted)
                    assert torch.equal(raw.value[at, :end], -wanted)
                    if plan.offset[tile]:
                        assert (raw.scores[at] == plan.request[tile] + 1).all()
                    raw.scores[at] = plan.request[tile] + 1
                pages.keep(layer, plan, raw)
            done = [a + n for a, n in zip(done, extend, strict=True)]
