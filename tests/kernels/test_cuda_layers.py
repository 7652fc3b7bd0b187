"""What begins and ends a layer by the CUDA source on a CPU, against the specification: tokens, outputs, tiers."""

from __future__ import annotations

import shutil
from random import Random

import pytest
import torch
from hypothesis import given

from leankv_kernels import LOW, MID, Ops, RawPages, TierRule, build_plan, get_ops
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.tiers import NEVER, WEIGHT_STEPS, num_features
from leankv_kernels.tier_rule import SCORES
from tests.kernels.cases import MODEL_DTYPES
from tests.kernels.draws import generator
from tests.kernels.kernelutil import dice, few

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is compiled by g++")


@pytest.fixture(scope="module")
def cuda() -> Ops:
    """The emulated kernels."""
    return get_ops("cpu", "cuda-emulated")


@few(12)
@given(rng=dice)
def test_tiers_are_those_of_the_specification(cuda: Ops, ops: Ops, rng: Random) -> None:
    """Of every score, over several layers and pages in any places, with thresholds of their own or of all."""
    dim, page = rng.choice(((64, 64), (64, 64), (80, 256)))
    heads, group, layers, n = rng.randint(1, 3), rng.choice((1, 3, 8, 40)), rng.randint(1, 3), rng.randint(1, 4)
    rows, first, g = n + rng.randint(0, 3), rng.randint(0, 2), generator(rng.getrandbits(32))
    shape, dtype = (layers, rows, page, heads, dim), rng.choice(MODEL_DTYPES)
    key, value = ((torch.randn(shape, generator=g) * rng.choice((0, 1e-3, 1, 50))).to(dtype) for _ in "kv")
    scores = torch.randint(0, 3 * COLUMN_SCORE_ONE, (layers, rows, heads * group, page), generator=g).int()
    raw = RawPages(key, value, scores, torch.tensor(rng.sample(range(rows), n)))
    name, weights = rng.choice(SCORES), None
    if name == "predictor":
        weights = torch.randn(first + layers, heads, num_features(dim), generator=g) * 0.1 * WEIGHT_STEPS
        weights = weights.round().long()
    rule = TierRule(name, weights, rng.randint(0, 2), rng.choice((LOW, MID)))
    pages = [n] if rng.random() < 0.5 else []
    alphas = torch.rand(layers, *pages, 3, heads, generator=g, dtype=torch.float64).sort(-2, descending=True)[0] * 3
    alphas[..., rng.randrange(heads)] = rng.choice((0.5, NEVER, 0.0, -1.0))
    index = torch.tensor([rng.randint(0, 3) for _ in range(n)])
    got, want = (one.tier_pages(raw, first, rule, alphas, index) for one in (cuda, ops))
    assert got.shape == want.shape == (layers, n, heads, page)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", MODEL_DTYPES)
def test_merged_states_are_rounded_as_torch_does(cuda: Ops, dtype: torch.dtype) -> None:
    g = generator(3)
    outs = [torch.randn(4, 2, 64, generator=g) * 10.0 ** torch.randint(-9, 9, (4, 2, 64), generator=g) for _ in "ab"]
    lses = [torch.randn(4, 2, generator=g) for _ in "ab"]
    exact, lse = cuda.merge_states(outs[0], lses[0], outs[1], lses[1])
    rounded, same = cuda.merge_states(outs[0], lses[0], outs[1], lses[1], dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, exact.to(dtype))
    assert torch.equal(lse, same)


@few(10)
@given(rng=dice)
def test_tokens_are_written_to_their_pages(cuda: Ops, rng: Random) -> None:
    """Of decode and of prompts, from rows of a larger tensor or of their own."""
    page, heads, dim, dtype = 64, rng.randint(1, 3), rng.choice((64, 80)), rng.choice(MODEL_DTYPES)
    lengths, steps = [rng.randint(0, 2 * page) for _ in "abc"], [rng.choice((1, rng.randint(1, 100))) for _ in "abc"]
    slots = torch.arange(4 * 6 * page, dtype=torch.int32).view(4, -1)
    plan = build_plan(torch.tensor([3, 1, 2]), lengths, steps, slots, page, 1)
    rows, g = plan.num_tiles + 2, generator(rng.getrandbits(32))
    both = torch.randn(plan.num_tokens, (2 + rng.randint(0, 1)) * heads, dim, generator=g).to(dtype)
    key, value = both[:, :heads], both[:, heads : 2 * heads]
    at = torch.tensor(rng.sample(range(rows), plan.num_tiles))
    ours, theirs = (
        RawPages(*torch.zeros(2, rows, page, heads, dim, dtype=dtype), torch.zeros(rows, heads, page), at) for _ in "ab"
    )
    cuda.write_tokens(ours, plan, key, value)
    theirs.write(plan, key, value)
    assert torch.equal(ours.key, theirs.key)
    assert torch.equal(ours.value, theirs.value)
