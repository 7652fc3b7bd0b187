"""Which models' products are replaced on a CPU, and by what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from leankv_kernels import cpu
from leankv_patches import single_row
from leankv_sglang.products import cover_products

PLAIN = torch.nn.Sequential(torch.nn.Linear(2, 2))


class SomeMoeBlock(torch.nn.Module):
    """What SGLang's models call theirs."""


@pytest.fixture(autouse=True)
def taken_back() -> Iterator[None]:
    isa = cpu.isa()
    yield
    single_row.restore_products()
    cpu.use_isa(isa)


def replaced() -> bool:
    return single_row.elsewhere() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("differ", [False, True], ids=["torch's own", "oneDNN's"])
def test_layers_that_torch_would_loop_over(differ: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_row, "lone_rows_differ", lambda _dtype: differ)
    ours = not differ and dtype is not torch.float32 and cpu.isa() != "portable"
    assert cover_products(PLAIN, dtype) is None
    assert replaced() == ours
    assert single_row._linear is (cpu.linear if ours else None)


def test_portable_code_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_row, "lone_rows_differ", lambda _dtype: False)
    cpu.use_isa("portable")
    assert cover_products(PLAIN, torch.bfloat16) is None
    assert not replaced()


def test_models_with_experts() -> None:
    own = torch.nn.functional.linear(torch.ones(1, 8), torch.ones(3, 8))
    assert cover_products(torch.nn.Sequential(SomeMoeBlock()), torch.float32) is None
    assert replaced()
    assert torch.equal(torch.nn.functional.linear(torch.ones(1, 8), torch.ones(3, 8)), own)
