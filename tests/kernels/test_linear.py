"""Rows through a layer of 16 bits: near the reference, and the same bits in any company, by any threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leankv_kernels import get_ops
from leankv_kernels.cpu.extension import _cpu
from leankv_kernels.reference.linear import linear
from tests.kernels.draws import INTERPRETED
from tests.kernels.kernelutil import Backend, backend_named

pytestmark = pytest.mark.skipif(INTERPRETED, reason="no kernel of Triton's")
DTYPES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=["cpu-avx512", "cpu-avx2", "cpu-portable"])
def fast(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every instruction set."""
    with backend_named(request.param) as backend:
        yield backend


def layer(rows: int, outputs: int, inputs: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=draw).to(dtype)
    return x, (torch.randn(outputs, inputs, generator=draw) * 0.1).to(dtype)


@given(st.integers(0, 40), st.integers(0, 200), st.integers(0, 150), st.sampled_from(DTYPES), st.integers(0, 9))
def test_near_the_reference(fast: Backend, rows: int, outputs: int, inputs: int, dtype: torch.dtype, seed: int) -> None:
    x, weight = layer(rows, outputs, inputs, dtype, seed)
    got = fast.ops.linear(x, weight)
    assert got.dtype == torch.float32
    assert got.shape == (rows, outputs)
    size = x.double().abs() @ weight.double().abs().T
    assert bool(((got.double() - linear(x, weight)).abs() <= 1e-6 * size + 1e-30).all())


@given(st.data(), st.integers(1, 40), st.integers(1, 130), st.integers(1, 150), st.sampled_from(DTYPES))
def test_a_row_has_the_same_bits_in_any_company(
    fast: Backend, data: st.DataObject, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    x, weight = layer(rows, outputs, inputs, dtype)
    whole = fast.ops.linear(x, weight)
    first = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(first + 1, rows))
    assert torch.equal(fast.ops.linear(x[first:stop], weight), whole[first:stop])
    some = data.draw(st.integers(1, outputs))
    assert torch.equal(fast.ops.linear(x, weight[:some]), whole[:, :some])


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_decide_nothing(fast: Backend, threads: int) -> None:
    x, weight = layer(65, 300, 576, torch.bfloat16)
    one, many = torch.empty(65, 300), torch.empty(65, 300)
    _cpu.linear(x=x.float(), weight=weight, out=one, threads=1)
    _cpu.linear(x=x.float(), weight=weight, out=many, threads=threads)
    assert torch.equal(one, many)
    assert torch.equal(one, fast.ops.linear(x, weight))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_stays_in_its_row(fast: Backend, value: float) -> None:
    x, weight = layer(9, 20, 37, torch.bfloat16)
    whole = fast.ops.linear(x, weight)
    x[4, 36] = value
    got = fast.ops.linear(x, weight)
    assert not torch.isfinite(got[4]).any()
    rest = torch.arange(9) != 4
    assert torch.equal(got[rest], whole[rest])


def test_what_it_does_not_take_is_refused() -> None:
    ops = get_ops("cpu")
    x, weight = layer(2, 3, 16, torch.bfloat16)
    for wrong, said in ((weight.float(), "16 bits"), (weight[:, :8], "other strides|as "), (weight.T, "as ")):
        with pytest.raises(ValueError, match=said):
            ops.linear(x, wrong)
