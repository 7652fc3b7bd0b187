"""Heads of 512 channels, and values of another width than keys, in every backend."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from leankv_kernels import LOW, Ops, RawPages, RecordLayout, RecordStore, Tier
from leankv_kernels import layout as L
from leankv_kernels.reference.record import encode
from tests.kernels.cases import Case, plan_of, random_splits, simple, store_with
from tests.kernels.draws import INTERPRETED, PAIRS, generator, pair_name, random_tier_maps, small_layout
from tests.kernels.driver import Method
from tests.kernels.kernelutil import Backend
from tests.kernels.test_backends import mixed, run_beside_the_specification

DIMS = [(64, 80)] if INTERPRETED else [(192, 128), (128, 192), (64, 512), (512, 512), (512, 16), (400, 496)]


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("pair", PAIRS[:1] if INTERPRETED else PAIRS, ids=pair_name)
def test_every_op_does_what_the_specification_says(
    fast: Backend, ops: Ops, pair: tuple[Tier, Tier], dims: tuple[int, int]
) -> None:
    layout = RecordLayout(32, 2, dims[0], *pair, near=dims != (512, 16), v_head_dim=dims[1])
    witness = run_beside_the_specification(fast, ops, mixed(layout, 3, fast), Random(dims[0]), [75])
    assert all(witness.seen[what] for what in ("high", "low", "pruned", "attend_committed", "merge_states"))


@pytest.mark.parametrize("dims", DIMS[:4], ids=str)
def test_no_bit_depends_on_the_split(any_backend: Backend, dims: tuple[int, int]) -> None:
    layout = small_layout(head_dim=dims[0], v_head_dim=dims[1])
    case = Case(Method(layout, 1, alpha_high=1.2, alpha_low=0.4), 2, torch.bfloat16, any_backend.device)
    length = 40 if INTERPRETED else 100
    _, at_once = case.alone(any_backend.ops, case.tokens(length, seed=1))
    driver = case.driver(any_backend.ops)
    got = driver.run(driver.admit(case.tokens(length, seed=1), 2), random_splits(Random(1), length))
    assert torch.equal(got.output(), at_once.output())
    assert got.output().shape == (length, 4, dims[1])


def test_integer_sums_of_512_channels_do_not_overflow(fast: Backend, ops: Ops) -> None:
    """Queries and codes that are all as large as they can be."""
    dim = 64 if INTERPRETED else 512
    layout = small_layout("k8v8,k8v8", head_dim=dim)
    key = torch.ones(1, 32, 2, dim)
    key[..., 0] = -1.0
    store = RecordStore(layout, 1, 1, fast.device)
    tiers = torch.full((1, 2, 32), LOW, dtype=torch.uint8)
    raw = RawPages.whole(*(x.to(fast.device) for x in (key, key)))
    fast.ops.commit_pages(store, 0, torch.tensor([1], device=fast.device), raw, tiers.to(fast.device), "none")
    case = replace(simple(), dtype=torch.float32, device=fast.device)
    case = replace(case, method=replace(case.method, layout=layout))
    q, plan = torch.ones(1, 4, dim, device=fast.device), plan_of(case, 1, before=1)
    (_, lse), (_, want) = (o.attend_committed(q, store, 0, plan, 1 / dim, "none") for o in (fast.ops, ops))
    torch.testing.assert_close(lse.double(), want, rtol=1e-3, atol=1e-3)


def test_values_have_bytes_of_their_own() -> None:
    wide, narrow = (small_layout(head_dim=192, v_head_dim=v) for v in (192, 128))
    assert wide == small_layout(head_dim=192)
    assert narrow.token_bytes.key_base == wide.token_bytes.key_base
    assert narrow.token_bytes.value_base * 192 == wide.token_bytes.value_base * 128
    assert narrow.record_bytes < wide.record_bytes
    assert narrow.centre_bytes == wide.centre_bytes


def test_keys_of_a_record_do_not_know_of_the_values_width() -> None:
    rng, shape = Random(5), (1, 2, 32)
    key, value = (torch.randn(*shape, 64, generator=generator(i), dtype=torch.float64) for i in (1, 2))
    layouts = [small_layout(head_dim=64, v_head_dim=v) for v in (64, 32)]
    tiers = random_tier_maps(rng, layouts[0], 1)
    codes = []
    for layout in layouts:
        record, _ = encode(key, value[..., : layout.v_head_dim], tiers, layout)
        places = layout.places(tiers)
        words = places.key[0].for_each().key_word(places.token[..., None], torch.arange(8), 64)
        codes.append(record[0].view(torch.int32)[words.clamp(min=0) // L.KEY_PLANE])
    assert torch.equal(*codes)


def test_cut_records_of_uneven_heads(fast: Backend, ops: Ops) -> None:
    dims = DIMS[0]
    case = replace(simple(), dtype=torch.float32, device=fast.device)
    case = replace(case, method=replace(case.method, layout=small_layout(head_dim=dims[0], v_head_dim=dims[1])))
    tiers = random_tier_maps(Random(6), case.method.layout, 4)
    for level in (L.LEVEL_BASE, L.LEVEL_FAR):
        store = store_with(case, tiers, level, only=0, calm=True)
        tokens, plan = case.tokens(2, 9), plan_of(case, 2, before=4)
        got, want = (o.attend_committed(tokens.q, store, 0, plan, 0.1, "hadamard") for o in (fast.ops, ops))
        torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=2e-2)
        torch.testing.assert_close(got[1].double(), want[1], rtol=0, atol=2e-2)
