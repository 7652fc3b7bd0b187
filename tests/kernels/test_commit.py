"""From scores to tiers to bytes: what a commit keeps of a page."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, Ops, Plan, RawPages, RecordStore, build_plan
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.record import View, decode, read_tiers
from leankv_kernels.reference.tiers import NEVER, SINK_TOKENS, choose_tiers, mean_attention
from tests.kernels import dense
from tests.kernels.draws import generator, small_layout, wild_rows
from tests.kernels.kernelutil import dice, few, raw_pages

PAGE = 64


def rounding(page: int) -> float:
    """What fixed-point column scores can shift a significance by: half a unit per query, against 1 / page and more."""
    return page / 2 / COLUMN_SCORE_ONE


def plan_inside_a_page(page: int, first: int, queries: int) -> Plan:
    """One request that writes this part of its first page."""
    slots = torch.arange(page, 3 * page, dtype=torch.int32)[None]
    return build_plan(torch.tensor([0]), [first], [queries], slots, page, 1)


def page_of_tokens(page: int, heads: int, group: int, seed: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of one page."""
    g = generator(seed)
    q = torch.randn(page, heads * group, 64, generator=g, dtype=torch.float64)
    return q, torch.randn(page, heads, 64, generator=g, dtype=torch.float64) * 2


def column_scores(ops: Ops, q: Tensor, k: Tensor, chunks: list[int] | None = None) -> Tensor:
    """Scores ``[1, Hq, P]`` of a page whose queries come in these chunks."""
    page, start, raw = len(k), 0, raw_pages(k[None], k[None], q.shape[1])
    raw.scores.fill_(-1)  # what a page before has left
    for n in chunks or [page]:
        ops.attend_open(q[start : start + n], raw, plan_inside_a_page(page, start, n), 0.125)
        start += n
    return raw.scores


# Scores


@few(12)
@given(rng=dice)
def test_mean_attention_is_what_the_definition_says(ops: Ops, rng: Random) -> None:
    page, heads, group = rng.choice((16, 32, PAGE)), rng.randint(1, 3), rng.randint(1, 4)
    q, k = page_of_tokens(page, heads, group, rng.getrandbits(32))
    got = mean_attention(column_scores(ops, q, k), heads)
    tier = small_layout().high
    rule = dense.Rule(page, near_pages=1, high=tier, low=tier, rotation="none", scale=0.125)
    want = dense.mean_attention(q.numpy(), k.numpy(), rule)
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1.01 * rounding(page))


def test_uniform_attention_is_worth_one(ops: Ops) -> None:
    """To the first token, which every query sees, as much as to the last, which only its own does."""
    q, k = page_of_tokens(PAGE, 2, 3, seed=0)
    significance = mean_attention(column_scores(ops, q * 0, k), 2)
    assert significance.shape == (1, 2, PAGE)
    assert significance.dtype == torch.float64
    np.testing.assert_allclose(significance.numpy(), 1.0, rtol=0, atol=rounding(PAGE))


def test_the_query_head_that_needs_a_token_most_decides() -> None:
    """Significance of a KV head is the largest over its query group, and no other group's."""
    scores = torch.randint(0, COLUMN_SCORE_ONE, (3, 6, PAGE), generator=generator(0))
    alone = torch.stack([mean_attention(scores[:, i : i + 1], 1)[:, 0] for i in range(6)], dim=1)
    want = torch.stack([alone[:, :3].amax(1), alone[:, 3:].amax(1)], dim=1)
    assert torch.equal(mean_attention(scores, 2), want)


@few(12)
@given(rng=dice)
def test_scores_of_chunks_add_up_to_the_last_bit(ops: Ops, rng: Random) -> None:
    q, k = page_of_tokens(PAGE, 2, 2, rng.getrandbits(32))
    cuts = sorted({0, PAGE, *(rng.randint(1, PAGE - 1) for _ in range(rng.randint(1, 5)))})
    chunks = [end - start for start, end in pairwise(cuts)]
    assert torch.equal(column_scores(ops, q, k, chunks), column_scores(ops, q, k))
    assert torch.equal(column_scores(ops, q, k, [1] * PAGE), column_scores(ops, q, k))


# Tiers


INF = float("inf")


def tiers_of(
    significance: list[float], high: float = 1.0, low: float = 0.5, start: bool = False, mid: float = INF
) -> list[int]:
    """Tiers of one head's tokens."""
    alphas = torch.tensor([[high], [mid], [low]], dtype=torch.float64)
    row = torch.tensor([[significance]], dtype=torch.float64)
    return choose_tiers(row, alphas, torch.tensor([0 if start else 3]))[0, 0].tolist()


def test_a_token_is_high_above_alpha_high_and_low_from_alpha_low_on() -> None:
    just_above, just_below = np.nextafter(1.0, 2.0), np.nextafter(0.5, 0.0)
    assert tiers_of([just_above, 1.0, 0.5, just_below, 0.0]) == [HIGH, LOW, LOW, PRUNED, PRUNED]


def test_a_token_is_mid_between_alpha_mid_and_alpha_high() -> None:
    just_above = np.nextafter(0.8, 1.0)
    assert tiers_of([2.0, 1.0, just_above, 0.8, 0.1], mid=0.8) == [HIGH, MID, MID, LOW, PRUNED]
    assert tiers_of([2.0, 0.4], mid=0.3, low=0.5) == [HIGH, MID]


def test_alpha_low_of_zero_prunes_nothing() -> None:
    assert tiers_of([0.0, 5.0, 0.0], low=0.0) == [LOW, HIGH, LOW]


def test_an_infinite_alpha_high_keeps_nothing_high() -> None:
    assert tiers_of([1e300, 0.0], high=float("inf")) == [LOW, PRUNED]


def test_sinks_are_high_at_the_start_of_a_sequence_only() -> None:
    nothing = [0.0] * (SINK_TOKENS + 2)
    assert SINK_TOKENS == 4
    assert tiers_of(nothing, start=True) == [HIGH] * 4 + [PRUNED] * 2
    assert tiers_of(nothing, start=False) == [PRUNED] * 6


@pytest.mark.parametrize("least", [LOW, MID])
def test_nothing_in_the_first_pages_is_less_than_the_least(least: int) -> None:
    significance = torch.tensor([2.0, 1.0, 0.6, 0.1] * 2, dtype=torch.float64).expand(3, 1, 8)
    alphas = torch.tensor([[1.5], [0.8], [0.5]], dtype=torch.float64)
    tiers = choose_tiers(significance, alphas, torch.tensor([0, 1, 2]), keep_first=2, least=least)
    assert tiers[0, 0].tolist() == [HIGH] * 5 + [MID, least, least]
    assert tiers[1, 0].tolist() == [HIGH, MID, least, least] * 2
    assert tiers[2, 0].tolist() == [HIGH, MID, LOW, PRUNED] * 2


def test_a_head_that_prunes_all_prunes_the_first_pages_too() -> None:
    """It would take them for all of the context."""
    significance = torch.full((2, 2, 6), 0.5, dtype=torch.float64)
    alphas = torch.tensor([[NEVER, NEVER], [INF, NEVER], [NEVER, 0.9]], dtype=torch.float64)
    tiers = choose_tiers(significance, alphas, torch.tensor([0, 1]), keep_first=2, least=MID)
    assert tiers[0].tolist() == [[HIGH] * 4 + [PRUNED] * 2, [HIGH] * 4 + [MID] * 2]
    assert tiers[1].tolist() == [[PRUNED] * 6, [MID] * 6]
    each = choose_tiers(significance, alphas.expand(2, -1, -1), torch.tensor([0, 1]), keep_first=2, least=MID)
    assert torch.equal(each, tiers)


def test_every_page_and_head_has_its_own_thresholds_and_start() -> None:
    significance = torch.full((2, 2, 8), 0.7, dtype=torch.float64)
    alphas = torch.tensor([[0.6, 1.0], [INF, INF], [0.0, 0.8]], dtype=torch.float64)
    tiers = choose_tiers(significance, alphas, torch.tensor([1, 0]))
    assert tiers.dtype == torch.uint8
    assert tiers[0].tolist() == [[HIGH] * 8, [PRUNED] * 8]
    assert tiers[1].tolist() == [[HIGH] * 8, [HIGH] * 4 + [PRUNED] * 4]


def test_thresholds_per_page_are_those_of_the_pages_alone() -> None:
    rng = torch.Generator().manual_seed(1)
    significance = torch.rand(5, 2, 8, generator=rng, dtype=torch.float64)
    alphas = torch.rand(5, 3, 2, generator=rng, dtype=torch.float64).sort(1, descending=True).values
    start = torch.tensor([0, 1, 2, 0, 5])
    tiers = choose_tiers(significance, alphas, start)
    for i in range(5):
        one = slice(i, i + 1)
        assert torch.equal(tiers[one], choose_tiers(significance[one], alphas[i], start[one]))


# Bytes


def committed_store(ops: Ops, key: Tensor, value: Tensor, tiers: Tensor, groups: list[list[int]]) -> RecordStore:
    """Pages 1, 2, ... in layer 1, committed in these groups."""
    layout = small_layout("k8v4,k4v4,k4v2", page_size=key.shape[1], num_kv_heads=key.shape[2], head_dim=key.shape[3])
    store = RecordStore(layout, 2, len(key), "cpu")
    for group in groups:
        at = torch.tensor(group)
        ops.commit_pages(store, 1, at + 1, RawPages.whole(key, value).of(at), tiers[at], "hadamard")
    assert store.audit() == []
    return store


def some_pages(n: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values ``[n, P, H, D]`` in bfloat16, and tiers; some keys are degenerate."""
    key, value = (wild_rows((n, 32, 2, head_dim), seed).bfloat16() for seed in (1, 2))
    key[0, 3], key[0, 4], key[0, 5, :, 1:] = 0, key[0, 4, :, :1], 0  # zeros, a constant, a single channel
    return key, value, torch.randint(0, 4, (n, 2, 32), generator=generator(3), dtype=torch.uint8)


def views_of(store: RecordStore, pages: int, near: bool) -> View:
    return decode(store.gather(1, torch.arange(1, pages + 1)), store.layout, near)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_a_committed_page_reads_as_its_raw_tokens_do(ops: Ops, head_dim: int) -> None:
    """Rotated, stored at the tiers given, and rotated back."""
    key, value, tiers = some_pages(3, head_dim)
    store = committed_store(ops, key, value, tiers, [[0, 1, 2]])
    assert torch.equal(read_tiers(store.gather(1, torch.tensor([1, 2, 3])), store.layout), tiers)
    lay = store.layout
    rule = dense.Rule(32, 1, lay.high, lay.low, rotation="hadamard", scale=1.0, mid=lay.mid)
    seen = dense.views(*(x.flatten(0, 1).double().numpy() for x in (key, value)), rule)
    far, near, matrix = (*(views_of(store, 3, near) for near in (False, True)), dense.hadamard(head_dim))
    for kind in ("key", "value"):
        by_page = (len(key), 32, *key.shape[2:])
        by_tier = {tier: getattr(view, kind).reshape(by_page).swapaxes(1, 2) for tier, view in seen.items()}
        where = {tier: (tiers == tier).numpy()[..., None] for tier in by_tier}
        want = sum(by_tier[tier] * where[tier] for tier in by_tier)
        for view, wanted in ((far, want), (near, by_tier[HIGH])):
            off = np.abs(getattr(view, f"{kind}s")().numpy() @ matrix - wanted)
            # A zero or a centre may be rounded to another half where the two ways to rotate differ in the last bit, and
            # of two codings of a row that read alike the other one kept.
            assert (off > 1e-6).mean() < 5e-3
            assert off.max() < 1


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_pages_committed_together_or_alone_are_the_same_bytes(ops: Ops, head_dim: int) -> None:
    key, value, tiers = some_pages(4, head_dim)
    together, alone = (
        committed_store(ops, key, value, tiers, groups).gather(1, torch.arange(1, 5))
        for groups in ([[0, 1, 2, 3]], [[0], [1], [2], [3]])
    )
    assert torch.equal(together, alone)


def test_tiers_never_touch_what_the_next_pages_read(ops: Ops) -> None:
    """The near view of a page is the same whether its tokens are pruned, low or high."""
    key, value, tiers = some_pages(2, 64)
    near = [
        views_of(committed_store(ops, key, value, t, [[0, 1]]), 2, near=True)
        for t in (tiers, torch.full_like(tiers, PRUNED), torch.full_like(tiers, HIGH))
    ]
    for other in near[1:]:
        assert torch.equal(other.keys(), near[0].keys())
        assert torch.equal(other.values(), near[0].values())


def test_a_commit_leaves_its_inputs_and_other_layers_alone(ops: Ops) -> None:
    key, value, tiers = some_pages(2, 64)
    before = [x.clone() for x in (key, value, tiers)]
    store = committed_store(ops, key, value, tiers, [[0, 1]])
    assert all(torch.equal(a, b) for a, b in zip(before, (key, value, tiers), strict=True))
    assert not store.page_table[0].any()
