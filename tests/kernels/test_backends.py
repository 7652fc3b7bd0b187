"""Every fast backend against the specification: whole sequences, cut records, ugly pages, and bytes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given

from leankv_kernels import HIGH, LOW, PRUNED, Ops, RawPages, RecordLayout, RecordStore, Tier
from leankv_kernels import layout as L
from tests.kernels.cases import (
    MODEL_DTYPES,
    Case,
    plan_of,
    random_case,
    random_length,
    random_tiers,
    simple,
    store_with,
)
from tests.kernels.draws import (
    HEAD_DIMS,
    INTERPRETED,
    PAIRS,
    TIER_MAPS,
    generator,
    pair_name,
    random_layout,
    random_tier_maps,
    small_layout,
    wild_rows,
)
from tests.kernels.driver import Method, Tokens
from tests.kernels.kernelutil import Backend, dice, few
from tests.kernels.witness import Witness, assert_same_store, check_state, run_beside

MINUS_INF = float("-inf")


def witness_of(fast: Backend, ops: Ops) -> Witness:
    return Witness(fast.ops, ops)


# Whole sequences


def run_beside_the_specification(fast: Backend, ops: Ops, case: Case, rng: Random, lengths: list[int]) -> Witness:
    return run_beside(fast.ops, ops, case, rng, lengths)


@few(30, interpreted=2)
@given(rng=dice)
def test_every_op_does_what_the_specification_says(fast: Backend, ops: Ops, rng: Random) -> None:
    case = random_case(rng, *MODEL_DTYPES, device=fast.device)
    lengths = [random_length(rng, case.page, 3) for _ in range(rng.randint(1, 3))]
    run_beside_the_specification(fast, ops, case, rng, lengths)


def mixed(layout: RecordLayout, group: int, fast: Backend, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Every tier occurs."""
    return Case(Method(layout, int(layout.near), alpha_high=1.2, alpha_low=0.4), group, dtype, fast.device)


CHUNKS = [33, 7] if INTERPRETED else [40, 30]
"""Of a sequence that fills a page of 32 in its first forward."""
SLOW_PAIRS = [pair for pair in PAIRS if pair_name(pair) in ("k8v8,k8v8", "k8v8,k4v4", "k8v4,k4v2", "k4v2,k4v2")]


@pytest.mark.parametrize("pair", SLOW_PAIRS if INTERPRETED else PAIRS, ids=pair_name)
@pytest.mark.parametrize("head_dim", (80, 96) if INTERPRETED else HEAD_DIMS)
def test_every_pair_of_tiers_and_head_dim(fast: Backend, ops: Ops, pair: tuple[Tier, Tier], head_dim: int) -> None:
    case = mixed(RecordLayout(32, 2, head_dim, *pair, near=head_dim != 96), 2, fast)
    rng = Random(head_dim)
    witness = run_beside_the_specification(fast, ops, case, rng, [75])
    assert all(witness.seen[what] for what in ("high", "low", "pruned", "attend_committed", "merge_states"))


@pytest.mark.parametrize("group", (1, 3, 7) if INTERPRETED else range(1, 9))
def test_every_group(fast: Backend, ops: Ops, group: int) -> None:
    run_beside_the_specification(fast, ops, mixed(small_layout(), group, fast), Random(group), [70, 33])


@pytest.mark.parametrize("page", [48] if INTERPRETED else [16, 48, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_page_size(fast: Backend, ops: Ops, page: int, dtype: torch.dtype) -> None:
    layout = small_layout(page_size=page)
    run_beside_the_specification(fast, ops, mixed(layout, 3, fast, dtype), Random(page), [2 * page + 5, page])


@pytest.mark.parametrize("near_pages", [0, 1, 2])
def test_every_number_of_near_pages_by_single_tokens_at_the_edges_of_pages(
    fast: Backend, ops: Ops, near_pages: int
) -> None:
    case = mixed(small_layout(page_size=16), 3, fast)
    case = replace(case, method=replace(case.method, near_pages=near_pages))
    driver = case.driver(witness_of(fast, ops).as_ops())
    chunks = [15, 1, 16, 15, 1, 1] if INTERPRETED else [1, 14, 1, 1, 14, 1, 1, 15, 1, 1]
    driver.run(driver.admit(case.tokens(sum(chunks), near_pages), 2), chunks)


def test_peaked_scores(fast: Backend, ops: Ops) -> None:
    """Where one key takes everything, rounding a query may decide between two keys, but for nearly equal ones only."""
    case = mixed(small_layout(), 2, fast)
    calm = case.tokens(50 if INTERPRETED else 80, seed=3)
    tokens = replace(calm, q=calm.q * 1000)
    outputs = [d.run(d.admit(tokens, row=1)).output().double() for d in (case.driver(fast.ops), case.driver(ops))]
    assert bool(outputs[0].isfinite().all())
    same = (outputs[0] - outputs[1]).abs().amax(-1) <= 0.01 * tokens.v.double().abs().max()
    assert same.double().mean() > 0.97


@pytest.mark.parametrize("magnitude", [0.0, 1e-6, 3e4] if INTERPRETED else [0.0, 1e-6, 1e-3, 1e3, 3e4])
def test_values_of_any_size(fast: Backend, ops: Ops, magnitude: float) -> None:
    """Zeros, and numbers near either end of what scales in fp16 can hold."""
    case = mixed(small_layout(), 2, fast, torch.float32)
    drawn = case.tokens(sum(CHUNKS), seed=5)
    tokens = replace(drawn, v=(drawn.v / drawn.v.abs().max()) * magnitude)
    driver = case.driver(witness_of(fast, ops).as_ops())
    driver.run(driver.admit(tokens, row=1), CHUNKS)


def test_queries_and_keys_of_zeros(fast: Backend, ops: Ops) -> None:
    case = mixed(small_layout(), 2, fast)
    drawn = case.tokens(sum(CHUNKS), seed=6)
    for tokens in (replace(drawn, q=drawn.q * 0), Tokens(drawn.q * 0, drawn.k * 0, drawn.v * 0)):
        driver = case.driver(witness_of(fast, ops).as_ops())
        driver.run(driver.admit(tokens, row=1), CHUNKS)


# Committed pages alone


def compare_committed(fast: Backend, ops: Ops, case: Case, store: RecordStore, pages: int, queries: int = 3) -> None:
    tokens = case.tokens(queries, seed=9)
    plan = plan_of(case, queries, before=pages)
    witness_of(fast, ops).attend_committed(tokens.q, store, 0, plan, 0.1, case.method.rotation)


def simple_on(fast: Backend, near_pages: int = 1, near: bool = True) -> Case:
    return replace(simple(near_pages, near), dtype=torch.float32, device=fast.device)


@pytest.mark.parametrize("level", [L.LEVEL_BASE, L.LEVEL_FAR])
@pytest.mark.parametrize("pair", ["k8v4,k4v2", "k8v8,k4v4", "k4v4,k4v4"])
def test_records_cut_short(fast: Backend, ops: Ops, level: int, pair: str) -> None:
    """Trimmed and demoted pages beside whole ones; the nearest page keeps its near part."""
    case = simple_on(fast)
    case = replace(case, method=replace(case.method, layout=small_layout(pair)))
    for cut in (0, 2):
        compare_committed(fast, ops, case, store_with(case, random_tiers(4), level, only=cut, calm=True), pages=4)


@pytest.mark.parametrize("near_pages", [0, 1])
@pytest.mark.parametrize("pattern", TIER_MAPS)
def test_ugly_pages(fast: Backend, ops: Ops, pattern: str, near_pages: int) -> None:
    case = simple_on(fast, near_pages, near=near_pages > 0)
    tiers = torch.stack([TIER_MAPS[pattern]((2, 32), seed) for seed in range(3)])
    compare_committed(fast, ops, case, store_with(case, tiers, calm=True), pages=3)


def test_many_pages_make_several_splits(fast: Backend, ops: Ops) -> None:
    """Contexts around the edges at which a backend may cut them, among them splits in which nothing is left."""
    pages = 18 if INTERPRETED else 70
    case = simple_on(fast)
    tiers = random_tiers(pages)
    tiers[:16] = PRUNED
    store = store_with(case, tiers, calm=True)
    for before in (8, 9, 16, 17, pages) if INTERPRETED else (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, pages):
        compare_committed(fast, ops, case, store, before, queries=1)


@pytest.mark.parametrize("near", [True, False])
def test_pages_without_a_record_read_as_all_pruned(fast: Backend, ops: Ops, near: bool) -> None:
    """Page 0, which padding points at, and ids that were freed."""
    case = simple_on(fast, int(near), near)
    store = store_with(case, random_tiers(4), calm=True)
    store.free(torch.tensor([1, 3], device=fast.device))
    compare_committed(fast, ops, case, store, pages=4)


def test_nothing_is_read_where_nothing_is_kept(fast: Backend, ops: Ops) -> None:
    case, tiers = simple_on(fast, 0, near=False), random_tiers(3)
    tiers[:, 1] = PRUNED
    out, lse = fast.ops.attend_committed(
        case.tokens(2, 9).q, store_with(case, tiers), 0, plan_of(case, 2, before=3), 0.1, "hadamard"
    )
    assert not out[:, case.group :].any()
    assert bool((lse[:, case.group :] == MINUS_INF).all())
    assert bool(lse[:, : case.group].isfinite().all())


# Merging


@few(20)
@given(rng=dice)
def test_merged_states(fast: Backend, ops: Ops, rng: Random) -> None:
    """Far apart, equal, and empty on either side or both."""
    g, shape = generator(rng.getrandbits(32)), (rng.randint(1, 5), rng.randint(1, 7))
    dim, spread, states = rng.choice((16, 80, 128)), 10 ** rng.uniform(-3, 2), []
    for _ in range(2):
        out, lse = torch.randn(*shape, dim, generator=g), torch.randn(shape, generator=g) * spread
        empty = torch.rand(shape, generator=g) < 0.3
        states += [out.masked_fill(empty[..., None], 0.0), lse.masked_fill(empty, MINUS_INF)]
    states = [x.to(fast.device) for x in states]
    witness_of(fast, ops).merge_states(*states)
    sinks = torch.randn(shape[1], generator=g).masked_fill(torch.rand(shape[1], generator=g) < 0.2, MINUS_INF) * spread
    sinks = sinks.to(fast.device, rng.choice(MODEL_DTYPES))
    witness_of(fast, ops).merge_states(*states, sinks=sinks)
    nothing = (torch.zeros_like(states[0]), torch.full_like(states[1], MINUS_INF))
    for merged in (fast.ops.merge_states(*states[:2], *nothing), fast.ops.merge_states(*nothing, *states[:2])):
        assert torch.equal(merged[0], states[0])
        check_state(*merged, states[0].double(), states[1].double(), 0.0, 1e-5)


# Bytes


@few(20)
@given(rng=dice)
def test_records_are_the_bytes_of_the_specification(fast: Backend, ops: Ops, rng: Random) -> None:
    """Pages of wild values committed in groups, some freed in between, so that blocks are taken out of order."""
    layout = random_layout(rng)
    if INTERPRETED:
        layout = replace(layout, page_size=16, num_kv_heads=rng.randint(1, 2))
    n, dtype, rotation = rng.randint(2, 5), rng.choice(MODEL_DTYPES), rng.choice(("hadamard", "none"))
    layers, rows = rng.randint(1, 2), n + rng.randint(0, 2)
    shape = (layers, rows, layout.page_size, layout.num_kv_heads)
    dims = (layout.head_dim, layout.v_head_dim)
    key, value = (wild_rows((*shape, dim), rng.getrandbits(32)).to(fast.device, dtype) for dim in dims)
    key[:, 0, 3] = 0
    scores = torch.zeros(layers, rows, 0, layout.page_size, dtype=torch.int32, device=fast.device)
    places = torch.tensor(rng.sample(range(rows), n), device=fast.device)
    raw = RawPages(key, value, scores, places)
    tiers = torch.stack([random_tier_maps(rng, layout, n) for _ in range(layers)]).to(fast.device)
    stores = [RecordStore(layout, 3, n, fast.device) for _ in range(2)]
    first = rng.randint(1, n - 1)
    for group in (range(first), range(first, n), range(1)):
        at = torch.tensor([*group], device=fast.device)
        for store, theirs in zip(stores, (fast.ops, ops), strict=True):
            store.free(at + 1)
            theirs.commit_pages(store, 1, at + 1, raw.of(at), tiers[:, at], rotation)
        assert_same_store(*stores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_degenerate_tokens_have_the_bytes_of_the_specification(fast: Backend, ops: Ops, dtype: torch.dtype) -> None:
    """Zeros, constants, single channels, the largest numbers there are, and the smallest."""
    layout = small_layout(page_size=16)
    key = wild_rows((1, 16, 2, 64), 0).to(dtype)
    most, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    rows = [(0, 0), (1.5, 1.5), (0, 3), (0, -3), (most, -most), (least, 0), (-7, -7)]
    for token, (fill, first) in enumerate(rows):
        key[0, token], key[0, token, :, 0] = fill, first
    key = key.to(fast.device)
    tiers = torch.tensor([HIGH, LOW, PRUNED, HIGH], dtype=torch.uint8).repeat(1, 2, 4).to(fast.device)
    stores = [RecordStore(layout, 1, 1, fast.device) for _ in range(2)]
    for store, theirs in zip(stores, (fast.ops, ops), strict=True):
        theirs.commit_pages(
            store, 0, torch.tensor([1], device=fast.device), RawPages.whole(key, -key), tiers, "hadamard"
        )
    assert_same_store(*stores)


def test_inputs_are_left_alone(fast: Backend) -> None:
    case = simple_on(fast)
    store, tokens = store_with(case, random_tiers(3)), case.tokens(2, 9)
    before = [x.clone() for x in (store.blocks, store.page_table, tokens.q)]
    fast.ops.attend_committed(tokens.q, store, 0, plan_of(case, 2, before=3), 0.1, "hadamard")
    for a, b in zip(before, (store.blocks, store.page_table, tokens.q), strict=True):
        assert torch.equal(a, b)
