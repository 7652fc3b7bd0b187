"""Ops that begin and end a layer beside the specification, on inputs drawn at random; for tests and the GPU check."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch

from leankv_kernels import LOW, MID, Ops, RawPages, TierRule, build_plan
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.tiers import NEVER, WEIGHT_STEPS, num_features
from leankv_kernels.tier_rule import SCORES
from tests.kernels.cases import MODEL_DTYPES
from tests.kernels.draws import generator


class LayerShape(NamedTuple):
    """Of a layer, and where."""

    page: int
    heads: int
    head_dim: int
    group: int
    device: str = "cpu"


def compare_tiers(fast: Ops, reference: Ops, shape: LayerShape, rng: Random) -> None:
    """Of every score, over several layers and pages in any places, with thresholds of their own or of all."""
    page, heads, dim, group, device = shape
    layers, n = rng.randint(1, 3), rng.randint(1, 4)
    rows, first, g = n + rng.randint(0, 3), rng.randint(0, 2), generator(rng.getrandbits(32))
    size, dtype = (layers, rows, page, heads, dim), rng.choice(MODEL_DTYPES)
    key, value = ((torch.randn(size, generator=g) * rng.choice((0, 1e-3, 1, 50))).to(device, dtype) for _ in "kv")
    scores = torch.randint(0, 3 * COLUMN_SCORE_ONE, (layers, rows, heads * group, page), generator=g).int().to(device)
    raw = RawPages(key, value, scores, torch.tensor(rng.sample(range(rows), n), device=device))
    name, weights = rng.choice(SCORES), None
    if name == "predictor":
        weights = torch.randn(first + layers, heads, num_features(dim), generator=g) * 0.1 * WEIGHT_STEPS
        weights = weights.round().long().to(device)
    rule = TierRule(name, weights, rng.randint(0, 2), rng.choice((LOW, MID)))
    alphas = torch.rand(layers, rng.choice((1, n)), 3, heads, generator=g, dtype=torch.float64) * 3
    alphas = alphas.sort(-2, descending=True)[0]
    alphas[..., rng.randrange(heads)] = rng.choice((0.5, NEVER, 0.0, -1.0))
    index = torch.tensor([rng.randint(0, 3) for _ in range(n)], device=device)
    got, want = (one.tier_pages(raw, first, rule, alphas.to(device), index) for one in (fast, reference))
    assert got.shape == want.shape == (layers, n, heads, page)
    assert torch.equal(got, want)


def compare_written(fast: Ops, shape: LayerShape, rng: Random) -> None:
    """Tokens of decode and of prompts, from rows of a larger tensor or of their own, in their pages."""
    page, heads, dim, _, device = shape
    dtype = rng.choice(MODEL_DTYPES)
    lengths, steps = [rng.randint(0, 2 * page) for _ in "abc"], [rng.choice((1, rng.randint(1, 100))) for _ in "abc"]
    slots = torch.arange(4 * 6 * page, dtype=torch.int32, device=device).view(4, -1)
    plan = build_plan(torch.tensor([3, 1, 2], device=device), lengths, steps, slots, page, 1)
    rows, g = plan.num_tiles + 2, generator(rng.getrandbits(32))
    both = torch.randn(plan.num_tokens, (2 + rng.randint(0, 1)) * heads, dim, generator=g).to(device, dtype)
    key, value = both[:, :heads], both[:, heads : 2 * heads]
    at = torch.tensor(rng.sample(range(rows), plan.num_tiles), device=device)
    empty = torch.zeros(rows, page, heads, dim, dtype=dtype, device=device)
    ours, theirs = (RawPages(empty.clone(), empty.clone(), torch.zeros(rows, heads, page), at) for _ in "ab")
    fast.write_tokens(ours, plan, key, value)
    theirs.write(plan, key, value)
    assert torch.equal(ours.key, theirs.key)
    assert torch.equal(ours.value, theirs.value)
