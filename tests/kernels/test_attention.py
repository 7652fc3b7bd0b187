"""The read rule: against an independent evaluator, and bit for bit the same however a sequence reaches it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import HIGH, LOW, PRUNED, Ops, RecordStore, build_plan
from leankv_kernels import layout as L
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.record import read_tiers
from tests.kernels import dense
from tests.kernels.cases import Case, plan_of, random_case, random_length, random_tiers, simple, store_with
from tests.kernels.draws import commit, generator, small_layout
from tests.kernels.driver import Driver, Method, Request, Tokens, without_place
from tests.kernels.kernelutil import dice, few, raw_pages

MINUS_INF = float("-inf")


# Against the evaluator


def rule_of(method: Method) -> dense.Rule:
    lay = method.layout
    scale = lay.head_dim**-0.5
    return dense.Rule(
        lay.page_size, method.near_pages, lay.high, lay.low, method.rotation, scale, lay.mid, method.cap, method.sinks
    )


def arrays(tokens: Tokens) -> tuple[dense.Array, dense.Array, dense.Array]:
    return tokens.q.numpy(), tokens.k.numpy(), tokens.v.numpy()


def stored_tiers(driver: Driver, request: Request) -> np.ndarray:
    return read_tiers(driver.records(request), driver.method.layout).numpy()


@few(40)
@given(rng=dice)
def test_every_token_reads_what_the_rule_says(ops: Ops, rng: Random) -> None:
    """Several requests in one batch, each in a few forwards; float64 in and out, so nothing hides in rounding."""
    case = random_case(rng, torch.float64)
    driver = case.driver(ops)
    requests = [
        driver.admit(case.tokens(random_length(rng, case.page, 3), rng.getrandbits(32)), row)
        for row in range(2, rng.randint(3, 4))
    ]
    for request in requests:
        first = rng.randrange(len(request.tokens))
        if first:
            driver.step([(request, first)])
    driver.step([(r, len(r.tokens) - r.done) for r in requests])
    for request in requests:
        want = dense.attention(*arrays(request.tokens), stored_tiers(driver, request), rule_of(case.method))
        np.testing.assert_allclose(request.output().numpy(), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_the_rule_holds_at_the_edges_of_pages(ops: Ops, length: int, group: int) -> None:
    method = Method(small_layout(page_size=64, num_kv_heads=2), near_pages=1, alpha_high=1.2, alpha_low=0.4)
    case = Case(method, group, torch.float64)
    driver, request = case.alone(ops, case.tokens(length, seed=length))
    want = dense.attention(*arrays(request.tokens), stored_tiers(driver, request), rule_of(method))
    np.testing.assert_allclose(request.output().numpy(), want, rtol=0, atol=1e-10)


def test_pruning_and_both_tiers_are_really_exercised(ops: Ops) -> None:
    """The cases above mean something only if their thresholds lead to every tier."""
    method = Method(small_layout(page_size=64), alpha_high=1.2, alpha_low=0.4)
    case = Case(method, 2, torch.bfloat16)
    tiers = stored_tiers(*case.alone(ops, case.tokens(256, seed=0)))
    assert (np.bincount(tiers.ravel(), minlength=3) > 0.05 * tiers.size).all()


@few(20)
@given(rng=dice)
def test_the_column_scores_of_all_queries_add_up_to_their_number(ops: Ops, rng: Random) -> None:
    case = random_case(rng, torch.float64)
    tokens = case.tokens(case.page, rng.getrandbits(32))
    plan = plan_of(case, queries=case.page)
    raw = raw_pages(tokens.k[None], tokens.v[None], tokens.q.shape[1])
    _, lse = ops.attend_open(tokens.q, raw, plan, 1.0)
    received = raw.scores.sum(-1).double() / COLUMN_SCORE_ONE
    assert bool(((received - case.page).abs() < case.page**2 / COLUMN_SCORE_ONE).all())
    k = tokens.k.repeat_interleave(case.group, dim=1)
    for t in (0, case.page // 2, case.page - 1):
        want = torch.einsum("hd,phd->hp", tokens.q[t], k[: t + 1]).logsumexp(-1)
        torch.testing.assert_close(lse[t], want, atol=1e-10, rtol=0)


# Open pages alone


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), MINUS_INF])
def test_open_pages_are_read_up_to_each_tiles_last_query_only(ops: Ops, garbage: float) -> None:
    """Tiles of unequal length: neither outputs nor scores see what lies behind."""
    case = simple()
    slots = torch.arange(64, dtype=torch.int32).expand(2, 64) + 32
    plan = build_plan(torch.tensor([0, 1]), [5, 3], [1, 20], slots, case.page, 1)
    tokens = case.tokens(64, seed=4)
    pages = [x.unflatten(0, (2, 32)).clone() for x in (tokens.k, tokens.v)]

    def run() -> list[Tensor]:
        raw = raw_pages(*pages, tokens.q.shape[1])
        return [*ops.attend_open(tokens.q[:21], raw, plan, 0.1), raw.scores]

    want = run()
    for page in pages:
        page[0, 6:], page[1, 23:] = garbage, garbage
    for a, b in zip(run(), want, strict=True):
        assert torch.equal(a, b)


def test_exactly_equal_scores_keep_all_but_the_noise_of_cancelling_values(ops: Ops) -> None:
    """Queries of zeros: where the mean of the values is exactly zero, float64 leaves 1e-16 or nothing, by its order."""
    case = Case(Method(small_layout(page_size=32), alpha_high=1.2, alpha_low=0.4), 2, torch.bfloat16)
    drawn = case.tokens(80, seed=1)
    tokens = replace(drawn, q=drawn.q * 0, v=(drawn.v * 4).round())
    driver = case.driver(ops)
    request = driver.run(driver.admit(tokens, row=1), [1] * 80)
    reference, alone = case.alone(ops, tokens)
    assert torch.equal(driver.records(request), reference.records(alone))
    torch.testing.assert_close(request.output(), alone.output(), rtol=0, atol=1e-14)


# Committed pages alone


def attend(
    ops: Ops, case: Case, store: RecordStore, pages: int, near_pages: int | None = None
) -> tuple[Tensor, Tensor]:
    """Two queries behind this many pages."""
    tokens = case.tokens(2, seed=9)
    plan = plan_of(case, queries=2, before=pages, near_pages=near_pages)
    return ops.attend_committed(tokens.q, store, 0, plan, 0.1, case.method.rotation)


def assert_empty(out: Tensor, lse: Tensor) -> None:
    assert not out.any()
    assert bool((lse == MINUS_INF).all())


def test_without_pages_nothing_is_read(ops: Ops) -> None:
    case = simple()
    assert_empty(*attend(ops, case, store_with(case, random_tiers(1)), pages=0))


@pytest.mark.parametrize("pages", [1, 3])
def test_a_head_whose_tokens_are_all_pruned_reads_nothing(ops: Ops, pages: int) -> None:
    case, tiers = simple(near_pages=0, near=False), random_tiers(pages)
    tiers[:, 1] = PRUNED
    out, lse = attend(ops, case, store_with(case, tiers), pages)
    assert_empty(out[:, case.group :], lse[:, case.group :])
    assert bool(lse[:, : case.group].isfinite().all())


@pytest.mark.parametrize("near_pages", [0, 1, 2, 5])
def test_near_pages_read_pruned_tokens(ops: Ops, near_pages: int) -> None:
    """Beyond them, the tiers rule; more near pages than the context has read all of it at high."""
    case, pages = simple(), 3
    tiers = torch.full((pages, 2, 32), PRUNED, dtype=torch.uint8)
    got = attend(ops, case, store_with(case, tiers), pages, near_pages)
    tiers[pages - min(near_pages, pages) :] = HIGH
    want = attend(ops, case, store_with(case, tiers), pages, near_pages=0)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tiers", [random_tiers(3), torch.full((3, 2, 32), LOW, dtype=torch.uint8)])
def test_no_near_pages_need_no_near_part(ops: Ops, tiers: Tensor) -> None:
    with_near, without = simple(near_pages=0), simple(near_pages=0, near=False)
    got = (attend(ops, case, store_with(case, tiers), 3) for case in (with_near, without))
    for a, b in zip(*got, strict=True):
        assert torch.equal(a, b)


def test_a_trimmed_page_reads_the_same_from_afar(ops: Ops) -> None:
    case, tiers = simple(near_pages=1), random_tiers(3)
    whole = attend(ops, case, store_with(case, tiers), 3)
    for trimmed in (0, 1):
        got = attend(ops, case, store_with(case, tiers, L.LEVEL_FAR, trimmed), 3)
        for a, b in zip(got, whole, strict=True):
            assert torch.equal(a, b)


def test_a_demoted_page_reads_its_far_tokens_low(ops: Ops) -> None:
    case, tiers = simple(near_pages=1), random_tiers(3)
    demoted = attend(ops, case, store_with(case, tiers, L.LEVEL_BASE, only=0), 3)
    tiers[0] = torch.where(tiers[0] == HIGH, LOW, tiers[0])
    low = attend(ops, case, store_with(case, tiers), 3)
    for a, b in zip(demoted, low, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_other_layers_are_not_read(ops: Ops) -> None:
    """Records of the same pages in another layer are other records."""
    case, layout = simple(), simple().method.layout
    both = RecordStore(layout, 2, 3, "cpu")
    for layer in (0, 1):
        page = commit(layout, random_tiers(3), seed=layer + 1)
        both.write(layer, torch.tensor([1, 2, 3]), page.records, page.nbytes)
    got, want = attend(ops, case, both, 3), attend(ops, case, store_with(case, random_tiers(3)), 3)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(
        without_place(both.gather(1, torch.tensor([2])), layout), without_place(page.records[1:2], layout)
    )


@pytest.mark.parametrize("near", [True, False])
def test_no_page_id_reads_as_a_number(ops: Ops, near: bool) -> None:
    """Rows that a record does not keep must not be taken from its header, where a page id may look like a NaN."""
    case, tiers = simple(near_pages=int(near), near=near), random_tiers(3)
    store = store_with(case, tiers)
    want = attend(ops, case, store, 3)
    for head in store.page_table[0, 1:].tolist():
        store.blocks.view(torch.int32)[head, L.W_PAGE] = 0x7E007E00
    for a, b in zip(attend(ops, case, store, 3), want, strict=True):
        assert torch.equal(a, b)


# Merging partial attentions


def partial(seed: int, tokens: int = 5, heads: int = 3) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    out = torch.randn(tokens, heads, 16, generator=g, dtype=torch.float64)
    return out, torch.randn(tokens, heads, generator=g, dtype=torch.float64) * 20


def nothing(like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(like[0]), torch.full_like(like[1], MINUS_INF)


def test_merging_with_nothing_changes_no_bit(ops: Ops) -> None:
    state = partial(0)
    for merged in (ops.merge_states(*state, *nothing(state)), ops.merge_states(*nothing(state), *state)):
        assert torch.equal(merged[0], state[0])
        torch.testing.assert_close(merged[1], state[1], atol=1e-12, rtol=0)


def test_merging_nothing_with_nothing_is_nothing(ops: Ops) -> None:
    empty = nothing(partial(0))
    assert_empty(*ops.merge_states(*empty, *empty))


@few(30)
@given(rng=dice)
def test_merging_is_associative_and_commutative(ops: Ops, rng: Random) -> None:
    """Any of the three may be empty."""
    states = [partial(rng.getrandbits(32)) for _ in range(3)]
    a, b, c = (state if rng.random() < 0.7 else nothing(state) for state in states)
    left = ops.merge_states(*ops.merge_states(*a, *b), *c)
    right = ops.merge_states(*a, *ops.merge_states(*b, *c))
    swapped = ops.merge_states(*c, *ops.merge_states(*b, *a))
    for other in (right, swapped):
        for mine, theirs in zip(left, other, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


@few(20)
@given(rng=dice)
def test_merging_equals_one_softmax_over_the_union(ops: Ops, rng: Random) -> None:
    g, first = generator(rng.getrandbits(32)), rng.randint(1, 9)
    scores = torch.randn(2, 3, 10, generator=g, dtype=torch.float64) * 10 ** rng.uniform(-3, 3)
    values = torch.randn(10, 16, generator=g, dtype=torch.float64)

    def attention(part: slice) -> tuple[Tensor, Tensor]:
        return scores[..., part].softmax(-1) @ values[part], scores[..., part].logsumexp(-1)

    merged = ops.merge_states(*attention(slice(0, first)), *attention(slice(first, 10)))
    for got, want in zip(merged, attention(slice(0, 10)), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
