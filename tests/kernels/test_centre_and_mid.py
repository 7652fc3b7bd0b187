"""Keys coded less their page's centre, and the tier between high and low, in every backend."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, Ops, RawPages, RecordLayout, RecordStore, Tier
from leankv_kernels import layout as L
from leankv_kernels.reference.codec import rotate
from leankv_kernels.reference.record import View, decode
from tests.kernels import dense
from tests.kernels.cases import Case, plan_of, simple, store_with
from tests.kernels.draws import INTERPRETED, PAIRS, generator, mids, pair_name, small_layout
from tests.kernels.driver import Method
from tests.kernels.kernelutil import Backend
from tests.kernels.test_backends import run_beside_the_specification
from tests.kernels.witness import Witness

THREE = "k8v4,k4v4,k4v2"
BETWEEN = [(high, mid, low) for high, low in PAIRS for mid in mids(high, low)]


def form_name(form: tuple[Tier, Tier, Tier]) -> str:
    """A test id."""
    return ",".join(tier.name for tier in form)


# Centres


def committed(backend: Backend, key: Tensor, tier: int, rotation: str = "hadamard") -> RecordStore:
    """Pages 1, 2, ... of keys ``[n, P, H, D]``, which are the values too, all of one tier."""
    n, page, heads, dim = key.shape
    store = RecordStore(small_layout(THREE, page_size=page, num_kv_heads=heads, head_dim=dim), 1, n, backend.device)
    pages = torch.arange(1, n + 1, device=backend.device)
    tiers = torch.full((n, heads, page), tier, dtype=torch.uint8, device=backend.device)
    key = key.to(backend.device)
    backend.ops.commit_pages(store, 0, pages, RawPages.whole(key, key), tiers, rotation)
    return store


def view_of(store: RecordStore, near: bool = False) -> View:
    """What the specification reads there."""
    blocks = store.gather(0, torch.arange(1, store.num_pages + 1, device=store.blocks.device))
    return decode(blocks.cpu(), store.layout, near)


@pytest.mark.parametrize("rotation", ["hadamard", "none"])
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_what_all_keys_share_costs_no_precision(any_backend: Backend, head_dim: int, rotation: str) -> None:
    """Four bits, where keys are a hundred times as far from zero as from each other."""
    g = generator(head_dim)
    own, common = torch.randn(2, 32, 2, head_dim, generator=g), torch.randn(2, 1, 2, head_dim, generator=g) * 100
    key = own + common
    view = view_of(committed(any_backend, key, LOW, rotation))
    wanted = rotate(key.transpose(1, 2), rotation)
    rest = wanted - view.key_centre[:, :, None]
    bound = torch.from_numpy(dense.widest_error(rest.numpy(), 4, 4))
    assert bool(((view.keys() - wanted).abs() <= bound[..., None]).all())
    assert bound.max() < 0.5
    # Values, which have no centre, cannot do that.
    assert (view.values() - wanted).abs().max() > 5


def test_a_centre_is_the_mean_key(any_backend: Backend) -> None:
    key = torch.randn(1, 32, 2, 64, generator=generator(1)) + 3
    view = view_of(committed(any_backend, key, HIGH, "none"))
    torch.testing.assert_close(view.key_centre, key.mean(1).double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tier", [HIGH, MID, LOW, PRUNED])
def test_pages_of_zeros_and_of_one_token(any_backend: Backend, tier: int) -> None:
    """No NaN, whatever is left once the centre is taken: nothing, or one token that differs from all others."""
    key = torch.zeros(4, 32, 2, 64)
    key[1], key[2, 5], key[3] = 2.5, 60000, -0.0
    key[3, 31, 1, 7] = 1e-6
    store = committed(any_backend, key, tier)
    views = [view_of(store, near) for near in (False, True)]
    for view in views:
        assert bool(view.keys().isfinite().all())
    near = views[1].keys()
    wanted = rotate(key.transpose(1, 2), "hadamard")
    assert torch.equal(near[0], wanted[0])
    torch.testing.assert_close(near[1], wanted[1], rtol=1e-3, atol=1e-6)
    case = replace(simple(), dtype=torch.float32, device=any_backend.device)
    case = replace(case, method=replace(case.method, layout=store.layout))
    out, lse = any_backend.ops.attend_committed(
        case.tokens(2, 9).q, store, 0, plan_of(case, 2, before=4), 1e-4, "hadamard"
    )
    assert bool(out.isfinite().all())
    assert bool(lse.isfinite().all())


@pytest.mark.parametrize("near", [True, False])
def test_pages_with_centres_far_apart(fast: Backend, ops: Ops, near: bool) -> None:
    """Each page moves its scores by another hundred."""
    case = replace(simple(int(near), near), dtype=torch.float32, device=fast.device)
    g = generator(int(near))
    key = torch.randn(9, 32, 2, 64, generator=g) + torch.randn(9, 1, 1, 64, generator=g) * 12
    value = torch.randn(9, 32, 2, 64, generator=g)
    tiers = torch.randint(0, 3, (9, 2, 32), generator=g, dtype=torch.uint8)
    store = RecordStore(case.method.layout, 1, 9, fast.device)
    pages = torch.arange(1, 10, device=fast.device)
    raw = RawPages.whole(*(x.to(fast.device) for x in (key, value)))
    ops.commit_pages(store, 0, pages, raw, tiers.to(fast.device), "hadamard")
    q = case.tokens(3, 9).q
    # Of the order of a model's scores: a query's rounding is relative to them.
    Witness(fast.ops, ops).attend_committed(q, store, 0, plan_of(case, 3, before=9), 0.02, "hadamard")


# The tier between


@pytest.mark.parametrize("form", BETWEEN[:1] if INTERPRETED else BETWEEN, ids=form_name)
@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("head_dim", (80,) if INTERPRETED else (64, 80, 96, 256))
def test_every_middle_tier(fast: Backend, ops: Ops, form: tuple[Tier, Tier, Tier], near: bool, head_dim: int) -> None:
    high, mid, low = form
    layout = RecordLayout(32, 2, head_dim, high, low, near=near, mid=mid)
    method = Method(layout, int(near), alpha_high=1.2, alpha_mid=0.9, alpha_low=0.4)
    case = Case(method, 3, torch.bfloat16, fast.device)
    witness = run_beside_the_specification(fast, ops, case, Random(head_dim), [75])
    assert all(witness.seen[what] for what in ("high", "mid", "low", "pruned", "attend_committed"))


@pytest.mark.parametrize("level", [L.LEVEL_BASE, L.LEVEL_FAR])
@pytest.mark.parametrize("pair", [THREE, "k8v8,k8v4,k4v4"])
def test_a_middle_tier_cut_short(fast: Backend, ops: Ops, level: int, pair: str) -> None:
    """Trimmed and demoted pages, on which mid tokens are read as low ones, beside whole ones."""
    case = replace(simple(), dtype=torch.float32, device=fast.device)
    case = replace(case, method=replace(case.method, layout=small_layout(pair)))
    tiers = torch.randint(0, 4, (4, 2, 32), generator=generator(4), dtype=torch.uint8)
    tiers[1, 0], tiers[2, 1] = MID, PRUNED
    for cut in (0, 1, 2):
        store, q = store_with(case, tiers, level, only=cut, calm=True), case.tokens(3, seed=9).q
        Witness(fast.ops, ops).attend_committed(q, store, 0, plan_of(case, 3, before=4), 0.1, "hadamard")


@pytest.mark.parametrize("head_dim", [80, 96, 256])
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_mid_tokens_read_as_their_form_says(ops: Ops, pair: tuple[Tier, Tier], head_dim: int) -> None:
    """The keys of one neighbour and the values of the other, bit for bit."""
    key = torch.randn(1, 32, 2, head_dim, generator=generator(2))
    for mid in mids(*pair):
        layout = RecordLayout(32, 2, head_dim, *pair, mid=mid)
        views = {}
        for tier in (HIGH, MID, LOW):
            store = RecordStore(layout, 1, 1, "cpu")
            tiers = torch.full((1, 2, 32), tier, dtype=torch.uint8)
            ops.commit_pages(store, 0, torch.tensor([1]), RawPages.whole(key, key), tiers, "hadamard")
            views[tier] = view_of(store)
        keys, values = (HIGH if layout.mid_keys_fine else LOW), (HIGH if layout.mid_values_fine else LOW)
        assert torch.equal(views[MID].keys(), views[keys].keys())
        assert torch.equal(views[MID].values(), views[values].values())
