"""Capped logits: against an independent softmax, and the same bits in prefill and decode, for every backend."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given

from leankv_kernels import Ops, RecordLayout, get_ops
from tests.kernels.cases import MODEL_DTYPES, Case, plan_of, random_case, random_length, random_splits
from tests.kernels.conftest import FAST
from tests.kernels.draws import INTERPRETED, small_layout
from tests.kernels.driver import Method
from tests.kernels.kernelutil import Backend, backend_named, dice, few, raw_pages
from tests.kernels.witness import run_beside

CAP = 5.0
"""Draws most scores of the cases in: they are some 2.5 apart, and keys' common part adds up to 30."""
EMULATED = ["cuda-emulated"] if shutil.which("g++") and not INTERPRETED else []


@pytest.fixture(scope="module", params=[*FAST, *EMULATED])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every fast backend, emulated CUDA included."""
    if request.param == "cuda-emulated":
        yield Backend(get_ops("cpu", "cuda-emulated"), "cpu")
        return
    with backend_named(request.param) as backend:
        yield backend


def written_for(backend: Backend, layout: RecordLayout) -> RecordLayout:
    """The layout, or one that the CUDA kernels are compiled for already."""
    return replace(layout, page_size=64, head_dim=64) if backend.ops.name == "cuda-emulated" else layout


def capped(case: Case, backend: Backend, cap: float = CAP) -> Case:
    method = replace(case.method, cap=cap, layout=written_for(backend, case.method.layout))
    group = 3 if backend.ops.name == "cuda-emulated" else case.group
    return replace(case, method=method, group=group)


@few(20)
@given(rng=dice)
def test_every_op_caps_as_the_specification_does(backend: Backend, ops: Ops, rng: Random) -> None:
    if backend.ops.name == "cuda-emulated":
        case = Case(Method(small_layout(page_size=64), 1, alpha_high=1.2, alpha_low=0.4), 3, rng.choice(MODEL_DTYPES))
        case = capped(case, backend, rng.choice((CAP, 0.5, 30.0)))
        run_beside(backend.ops, ops, case, rng, [random_length(rng, 64, 2)])
        return
    case = capped(random_case(rng, *MODEL_DTYPES, device=backend.device), backend, rng.choice((CAP, 0.5, 30.0)))
    run_beside(backend.ops, ops, case, rng, [random_length(rng, case.page, 3) for _ in range(rng.randint(1, 2))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_prefill_and_decode_cap_to_the_same_bits(backend: Backend, dtype: torch.dtype) -> None:
    emulated = backend.ops.name == "cuda-emulated"
    layout = small_layout(page_size=64 if emulated else 16 if INTERPRETED else 32)
    case = Case(Method(layout, 1, alpha_high=1.2, alpha_low=0.4, cap=CAP), 3, dtype, backend.device)
    length = 2 * case.page + 3
    tokens = case.tokens(length, seed=1)
    _, at_once = case.alone(backend.ops, tokens)
    driver = case.driver(backend.ops)
    splits = random_splits(Random(3), length) if emulated or INTERPRETED else [1] * length
    got = driver.run(driver.admit(tokens, row=2), splits).output()
    assert torch.equal(got, at_once.output())
    _, plain = replace(case, method=replace(case.method, cap=0.0)).alone(backend.ops, tokens)
    assert (plain.output().double() - got.double()).abs().max() > 0.01


def test_a_cap_far_above_all_scores_changes_next_to_nothing(ops: Ops) -> None:
    case = Case(Method(small_layout(), 1, alpha_high=1.2, alpha_low=0.4), 2, torch.float64)
    tokens = case.tokens(80, seed=2)
    _, plain = case.alone(ops, tokens)
    _, wide = replace(case, method=replace(case.method, cap=1e6)).alone(ops, tokens)
    torch.testing.assert_close(wide.output(), plain.output(), rtol=0, atol=1e-7)


def test_open_pages_cap_before_the_softmax(ops: Ops) -> None:
    """Of one query and one head: cap * tanh(score / cap)."""
    case = Case(Method(small_layout(num_kv_heads=1), 1), 1, torch.float64)
    tokens = case.tokens(32, seed=3)
    out, lse = ops.attend_open(tokens.q, raw_pages(tokens.k[None], tokens.v[None], 1), plan_of(case, 32), 0.3, CAP)
    scores = CAP * torch.tanh(tokens.q[31, 0] @ tokens.k[:, 0].T * 0.3 / CAP)
    torch.testing.assert_close(out[31, 0], scores.softmax(0) @ tokens.v[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(lse[31, 0], scores.logsumexp(0), rtol=0, atol=1e-12)
