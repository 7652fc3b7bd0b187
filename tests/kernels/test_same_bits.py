"""The central promise: what a token gets and what is stored do not depend on how the sequence came, for any backend."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.kernels.cases import MODEL_DTYPES, Case, random_case, random_length, random_splits
from tests.kernels.draws import INTERPRETED, small_layout
from tests.kernels.driver import Driver, Method, Request, Tokens
from tests.kernels.kernelutil import Backend, dice, few


@pytest.fixture(scope="module")
def backend(any_backend: Backend) -> Backend:
    """The specification and every fast backend."""
    return any_backend


def assert_same_output(got: Tensor, wanted: Tensor, exact: bool) -> None:
    """Equal bits; where not exact, float32 within one tile: sums of the specification's float64 can round differently,
    which 16-bit types do not show.
    """
    assert got.dtype == wanted.dtype
    if exact or got.dtype != torch.float32:
        assert torch.equal(got, wanted)
        return
    tile = np.spacing(torch.maximum(got.abs(), wanted.abs()).numpy())
    assert ((got - wanted).abs().numpy() <= tile).all()


def assert_same(driver: Driver, request: Request, backend: Backend, case: Case) -> None:
    """The request's outputs and records equal those of its tokens alone in one forward."""
    at_once, alone = case.alone(backend.ops, request.tokens)
    wanted = alone.output()[-len(request.output()) :]
    assert_same_output(request.output(), wanted, exact=backend.ops.name != "reference")
    assert torch.equal(driver.records(request), at_once.records(alone))
    assert driver.store.audit() == []


@few(60, interpreted=4)
@given(rng=dice)
def test_any_split_into_chunks_gives_the_same_bits(backend: Backend, rng: Random) -> None:
    case = random_case(rng, *MODEL_DTYPES, device=backend.device)
    length = random_length(rng, case.page)
    driver = case.driver(backend.ops)
    request = driver.admit(case.tokens(length, rng.getrandbits(32)), row=3)
    assert_same(driver, driver.run(request, random_splits(rng, length)), backend, case)


@pytest.mark.parametrize(
    "dtype", [torch.float32] if INTERPRETED else [torch.bfloat16, torch.float16, torch.float32], ids=str
)
@pytest.mark.parametrize(("head_dim", "group", "near_pages"), [(64, 3, 1), (80, 1, 0), (128, 4, 2)])
def test_token_by_token_gives_the_same_bits(
    backend: Backend, head_dim: int, group: int, near_pages: int, dtype: torch.dtype
) -> None:
    layout = small_layout(page_size=16 if INTERPRETED else 32, head_dim=head_dim, near=near_pages > 0)
    case = Case(Method(layout, near_pages, alpha_high=1.2, alpha_mid=0.8, alpha_low=0.4), group, dtype, backend.device)
    driver = case.driver(backend.ops)
    length = 34 if INTERPRETED else 100
    request = driver.admit(case.tokens(length, seed=head_dim), row=1)
    assert_same(driver, driver.run(request, [1] * length), backend, case)


@few(30, interpreted=2)
@given(rng=dice)
def test_company_in_the_batch_changes_no_bit(backend: Backend, rng: Random) -> None:
    """Requests come and go in any order and chunking: prefill beside decode, beside requests that wait."""
    case = random_case(rng, *MODEL_DTYPES, device=backend.device)
    driver = case.driver(backend.ops)
    rows = rng.sample(range(1, 8), 3)
    requests = [driver.admit(case.tokens(random_length(rng, case.page, 3), rng.getrandbits(32)), row) for row in rows]
    while running := [r for r in requests if r.done < len(r.tokens)]:
        chosen = rng.sample(running, rng.randint(1, len(running)))
        driver.step([(r, random_splits(rng, len(r.tokens) - r.done)[0]) for r in chosen])
    for request in requests:
        assert_same(driver, request, backend, case)


@few(40, interpreted=2)
@given(rng=dice)
def test_a_hit_in_the_tree_gives_the_bits_of_a_miss(backend: Backend, rng: Random) -> None:
    """A second request reads the first one's pages, as the radix tree lets it, and goes on in its own way."""
    case = random_case(rng, *MODEL_DTYPES, device=backend.device)
    driver = case.driver(backend.ops)
    shared = case.page * rng.randint(1, 1 if INTERPRETED else 3)
    first = driver.admit(case.tokens(shared + rng.randint(0, 20), rng.getrandbits(32)), row=1)
    driver.run(first, random_splits(rng, len(first.tokens)))
    prefix = Tokens(first.tokens.q[:shared], first.tokens.k[:shared], first.tokens.v[:shared])
    tail = random_length(rng, case.page, 2)
    # The row of the request that left is taken over with all its bytes.
    second = driver.admit(
        case.tokens(shared + tail, rng.getrandbits(32), prefix), 1, first.pages[: shared // case.page]
    )
    driver.run(second, random_splits(rng, tail))
    assert_same(driver, second, backend, case)
    assert second.pages[: shared // case.page] == first.pages[: shared // case.page]


@pytest.mark.parametrize(
    "garbage", [float("nan")] if INTERPRETED else [float("nan"), float("inf"), float("-inf"), 3e38]
)
def test_what_was_never_written_is_never_read(backend: Backend, garbage: float) -> None:
    """Open pages behind a row's last token and other rows may hold anything."""
    layout = small_layout(page_size=32)
    case = Case(Method(layout, alpha_high=1.2, alpha_mid=0.8, alpha_low=0.4), 3, torch.bfloat16, backend.device)
    driver = case.driver(backend.ops, garbage)
    steps = (1, 30, 2, 2 if INTERPRETED else 42)
    one, other = (driver.admit(case.tokens(sum(steps), seed), row) for seed, row in ((1, 2), (2, 5)))
    for n in steps:
        driver.step([(other, n), (one, n)])
    for request in (one, other):
        assert bool(request.output().isfinite().all())
        assert_same(driver, request, backend, case)


def test_far_apart_scores_keep_their_bits_too(backend: Backend) -> None:
    """Attention so peaked that most weights vanish, as attention sinks make it."""
    method = Method(small_layout(page_size=32), alpha_high=1.2, alpha_mid=0.8, alpha_low=0.4)
    case = Case(method, 2, torch.bfloat16, backend.device)
    chunks = [7, 27, 1, 5] if INTERPRETED else [7, 31, 1, 41]
    calm = case.tokens(sum(chunks), seed=3)
    tokens = replace(calm, q=calm.q * 1000)
    driver = case.driver(backend.ops)
    request = driver.run(driver.admit(tokens, row=1), chunks)
    assert bool(request.output().isfinite().all())
    assert_same(driver, request, backend, case)
