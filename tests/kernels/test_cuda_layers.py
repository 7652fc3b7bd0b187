"""What begins and ends a layer by the CUDA source on a CPU, against the specification: tokens, outputs, tiers."""

from __future__ import annotations

import shutil
from random import Random

import pytest
import torch
from hypothesis import given

from leankv_kernels import Ops
from tests.kernels.cases import MODEL_DTYPES
from tests.kernels.draws import generator
from tests.kernels.kernelutil import dice, few
from tests.kernels.layers import LayerShape, compare_tiers, compare_written

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is compiled by g++")


@few(12)
@given(rng=dice)
def test_tiers_are_those_of_the_specification(cuda: Ops, ops: Ops, rng: Random) -> None:
    dim, page = rng.choice(((64, 64), (64, 64), (80, 256)))
    compare_tiers(cuda, ops, LayerShape(page, rng.randint(1, 3), dim, rng.choice((1, 3, 8, 40))), rng)


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
    compare_written(cuda, LayerShape(64, rng.randint(1, 3), rng.choice((64, 80)), 1), rng)
