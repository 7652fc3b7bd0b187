"""What tiers and commit take beside what they are given, held to what each backend says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch

from leankv_kernels import LOW, Ops, RawPages, RecordStore, TierRule
from leankv_kernels.reference.tiers import num_features
from tests.kernels.draws import INTERPRETED, generator, small_layout
from tests.kernels.kernelutil import Backend
from tests.peak import peak_bytes

LAYERS, PAGES = 2, 3
FEW = [(64, 1, 80, 1), (64, 2, 64, 4)]
SHAPES = FEW if INTERPRETED else [*FEW, (64, 1, 64, 1), (64, 3, 256, 5), (256, 2, 80, 7)]
"""Tokens of a page, KV heads, head_dim, query heads of each."""
ALPHAS = torch.tensor([[1.4], [1.0], [0.6]], dtype=torch.float64)
DTYPES = (torch.bfloat16, torch.float32)


def committing(ops: Ops, shape: tuple[int, int, int, int], dtype: torch.dtype, score: str) -> Callable[[], None]:
    """What commits pages of several layers, those of some rows, by thresholds of their own."""
    page, heads, dim, group = shape
    layout = small_layout("k8v4,k4v4,k4v2", page_size=page, num_kv_heads=heads, head_dim=dim)
    g = generator(1)
    key, value = (torch.randn(LAYERS, PAGES + 2, page, heads, dim, generator=g).to(dtype) for _ in "kv")
    scores = torch.randint(0, 1 << 22, (LAYERS, PAGES + 2, heads * group, page), generator=g, dtype=torch.int32)
    raw = RawPages(key, value, scores, torch.tensor([4, 0, 2]))
    weights = torch.ones(LAYERS, heads, num_features(dim), dtype=torch.int64)
    rule = TierRule(score, weights if score == "predictor" else None, 1, LOW)
    # Like thresholds of some pages of many.
    alphas = ALPHAS.expand(LAYERS, 2 * PAGES, 3, heads).contiguous()[:, ::2]
    store = RecordStore(layout, LAYERS, 2 * PAGES, "cpu", LAYERS * PAGES * layout.max_blocks)

    def run() -> None:
        tiers = ops.tier_pages(raw, 0, rule, alphas, torch.arange(PAGES))
        ops.commit_pages(store, 0, torch.arange(1, PAGES + 1), raw, tiers, "hadamard")

    return run


def check(ops: Ops, shapes: list[tuple[int, int, int, int]]) -> None:
    """The most of all strategies is what is said, or less by a third at most."""
    for number, shape in enumerate(shapes):
        dtype = DTYPES[number % 2]
        page, heads, dim, group = shape
        layout = small_layout("k8v4,k4v4,k4v2", page_size=page, num_kv_heads=heads, head_dim=dim)
        said = LAYERS * PAGES * ops.commit_bytes(layout, heads * group, dtype.itemsize)
        taken = [peak_bytes(committing(ops, shape, dtype, score)) for score in ("predictor", "attention", "none")]
        assert said / 1.5 < max(taken) <= said, (shape, dtype)


def test_no_more_than_is_said(any_backend: Backend) -> None:
    check(any_backend.ops, SHAPES)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is compiled by g++")
def test_no_more_than_is_said_by_the_cuda_source(cuda: Ops) -> None:
    check(cuda, FEW)
