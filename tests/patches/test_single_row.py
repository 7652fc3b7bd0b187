"""Products on a CPU: a row has the same bits in any company, however the product is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from leankv_patches import single_row

Product = Callable[[Tensor, Tensor], Tensor]
CALLS: dict[str, Product] = {
    "linear": linear,
    "bias": lambda x, weight: linear(x, weight, weight[:, 0]),
    "matmul": lambda x, weight: torch.matmul(x, weight.T),
    "layer": lambda x, weight: _layer(weight)(x),
    "three dimensions": lambda x, weight: linear(x[None], weight)[0],
}
SIZES = ((128, 2048), (8, 512), (62, 1024), (1, 2048), (3, 2050), (5, 300))


def _layer(weight: Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.fixture
def replaced() -> Iterator[None]:
    single_row.replace_products()
    yield
    single_row.restore_products()


def test_torchs_own_products_are_noticed() -> None:
    single_row.restore_products()
    assert single_row.elsewhere() is not None


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_depend_on_their_company(replaced: None, call: Product, dtype: torch.dtype) -> None:
    assert single_row.elsewhere() is None
    draw = torch.Generator().manual_seed(1)
    for outputs, inputs in SIZES:
        weight = (torch.randn(outputs, inputs, generator=draw) * 0.05).to(dtype)
        x = torch.randn(200, inputs, generator=draw).to(dtype)
        whole = call(x, weight)
        for first, count in ((0, 1), (7, 1), (0, 2), (3, 3), (0, 5), (9, 7), (1, 15), (0, 17), (5, 64), (0, 131)):
            rows = slice(first, first + count)
            assert torch.equal(call(x[rows], weight), whole[rows]), (outputs, inputs, count)


def test_products_are_those_of_torch(replaced: None) -> None:
    a, b, bias = torch.randn(5, 33), torch.randn(33, 19), torch.randn(19)
    exact = a.double() @ b.double()
    assert torch.allclose(a @ b, exact.float(), atol=1e-5)
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.3)):
        got = torch.addmm(bias.to(dtype), a.to(dtype), b.to(dtype), beta=0.5, alpha=2)
        assert torch.allclose(got.double(), 0.5 * bias + 2 * exact, atol=near)
    assert (a[:0] @ b).shape == (0, 19)
    assert torch.equal(a[:, :0] @ b[:0], torch.zeros(5, 19))
    grown = a.requires_grad_()
    (grown @ b).sum().backward()
    assert grown.grad is not None


def test_a_kernel_takes_layers_of_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_row, "torch_takes", lambda dtype: dtype is torch.bfloat16)
    seen = []

    def kernel(x: Tensor, weight: Tensor) -> Tensor:
        seen.append((tuple(x.shape), tuple(weight.shape)))
        return x.float() @ weight.float().T

    x, weight, bias = torch.randn(3, 64).bfloat16(), torch.randn(8, 64).bfloat16(), torch.randn(8).bfloat16()
    exact = x.double() @ weight.double().T
    single_row.replace_products(kernel)
    try:
        assert torch.equal(linear(x, weight), exact.bfloat16())
        assert torch.equal(linear(x, weight, bias), (exact + bias).bfloat16())
        assert seen == [((3, 64), (8, 64))] * 2
        half = torch.addmm(bias, x, weight.T, beta=0.5, alpha=2)
        assert torch.allclose(half.double(), 2 * exact + bias / 2, rtol=0.01)
        # What lies otherwise, or has other numbers, is torch's.
        seen.clear()
        assert torch.allclose((x @ weight.T.contiguous()).double(), exact, rtol=0.05, atol=0.1)
        assert torch.allclose((x.float() @ weight.float().T).double(), exact, atol=1e-4)
        assert not seen
    finally:
        single_row.restore_products()


@pytest.fixture(params=[False, True], ids=["torch's own", "oneDNN's"])
def differ(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether lone rows of 16 bits have other bits, as on one CPU and not on another."""
    monkeypatch.setattr(single_row, "lone_rows_differ", lambda dtype: request.param and dtype is torch.bfloat16)
    return bool(request.param)


@pytest.mark.parametrize(("float32", "rows", "run"), [(False, 1, 2), (False, 3, 3), (True, 1, 4), (True, 5, 8)])
def test_logits_are_made_of_whole_rows(float32: bool, rows: int, run: int, differ: bool) -> None:
    seen = []

    def original(_processor: object, states: Tensor, weight: Tensor) -> Tensor:
        seen.append(len(states))
        return states.float() @ weight.float()

    states, weight = torch.randn(rows, 16).bfloat16(), torch.randn(16, 32)
    got = single_row.whole_rows(original, SimpleNamespace(use_fp32_lm_head=float32), states, weight)
    assert got.shape == (rows, 32)
    assert torch.allclose(got, states.float() @ weight, atol=1e-4)
    assert seen == [run if differ or float32 else rows]


def test_a_lone_row_runs_as_two_where_it_differs(differ: bool) -> None:
    seen = []

    def packed(_method: object, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(len(x))
        return linear(x, weight, bias)

    weight, x = torch.randn(8, 64).bfloat16(), torch.randn(5, 64).bfloat16()
    alone = single_row.two_rows(packed, None, weight, x[:1])
    assert alone.shape == (1, 8)
    assert torch.equal(alone, single_row.two_rows(packed, None, weight, x, None)[:1])
    assert single_row.two_rows(packed, None, weight, x[:0]).shape == (0, 8)
    assert seen == [1 + differ, 5, 0]
