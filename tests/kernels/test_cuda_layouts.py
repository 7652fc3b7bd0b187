"""Layouts that the CUDA kernels take, and on which GPUs: said before anything is compiled."""

from __future__ import annotations

import ctypes

import pytest
import torch

from leankv_kernels import RecordLayout, get_ops
from leankv_kernels.cuda import driver
from leankv_kernels.cuda.attend import (
    attend_shape,
    check_layout,
    common_bytes,
    least_shared_bytes,
    warp_bytes,
)
from leankv_kernels.cuda.compiler import NVCC_ENV, SHARED_BYTES, CompileError, find_nvcc
from leankv_kernels.cuda.emulated import library
from leankv_kernels.cuda.open import open_shape
from leankv_kernels.cuda.shipped import MODELS, attend_unit
from leankv_kernels.layout import TIERS, Tier
from leankv_kernels.ops import BACKEND_ENV, backend_name


def _layout(page: int, dim: int, high: Tier, low: Tier) -> RecordLayout:
    return RecordLayout(page, 2, dim, high, low)


@pytest.mark.parametrize("capability", ["80", "86", "90a"])
def test_shared_memory_is_what_the_source_says(capability: str) -> None:
    model = next(m for m in MODELS if m.name == "SmolLM2-135M")
    unit = attend_unit(model, ("k8v4", "k4v2"))
    threads, shared, _ = (ctypes.c_int * 3).in_dll(library(unit, SHARED_BYTES[capability]), "attend_committed_facts")
    shape = attend_shape(_layout(128, model.head_dim, TIERS["k8v4"], TIERS["k4v2"]), model.group)
    tiles = -(-shape.group * shape.queries // 4)
    assert shared == threads // 32 * warp_bytes(shape) + common_bytes(model.head_dim, tiles)


def test_wide_heads_in_long_pages_need_a_large_gpu() -> None:
    layout = _layout(256, 256, TIERS["k8v4"], TIERS["k4v2"])
    for capability in ("80", "90a", "100a"):
        check_layout(layout, SHARED_BYTES[capability])
    for capability in ("86", "89", "120a"):
        with pytest.raises(ValueError, match=r"need \d+ bytes of shared memory .* smaller page"):
            check_layout(layout, SHARED_BYTES[capability])
        check_layout(_layout(128, 256, TIERS["k8v8"], TIERS["k8v8"]), SHARED_BYTES[capability])
    assert least_shared_bytes(layout) > least_shared_bytes(_layout(128, 256, TIERS["k8v4"], TIERS["k4v2"]))


def test_formats_without_products_are_refused() -> None:
    layout = _layout(128, 64, Tier(8, 6), Tier(8, 6))
    with pytest.raises(ValueError, match="keys of 4 or 8 bits and values of 2, 4 or 8, not of 8 and 6"):
        attend_shape(layout, 4)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 and a compiler, as far as the choice of a backend looks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(driver, "has_compiler", lambda: True)
    monkeypatch.delenv(BACKEND_ENV, raising=False)
    driver._say_unfit.cache_clear()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("group", "name"), [(16, "cuda"), (34, "cuda"), (17, "triton"), (None, "cuda")])
def test_auto_takes_triton_for_a_query_group_that_cannot_be_divided_and_says_so_once(
    caplog: pytest.LogCaptureFixture, group: int | None, name: str
) -> None:
    layout = _layout(128, 128, TIERS["k8v4"], TIERS["k4v2"])
    for _ in range(2):
        assert backend_name("cuda", "auto", layout, group) == name
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (name == "triton")
    assert all("without the cuda kernels" in text and "not 17" in text for text in said)


@pytest.mark.parametrize(("dim", "refused"), [(128, (17, 19, 23)), (256, (17, 19, 25))])
def test_the_chosen_kernels_are_refused_before_the_first_call(dim: int, refused: tuple[int, ...]) -> None:
    layout = _layout(128, dim, TIERS["k8v4"], TIERS["k4v2"])
    for group in refused:
        says = f"^the cuda kernels take up to 16 query heads per KV head, .* not {group}: use the triton backend$"
        with pytest.raises(ValueError, match=says):
            get_ops("cpu", "cuda-emulated", layout, group)
        with pytest.raises(ValueError, match=says):
            backend_name("cuda", "cuda", layout, group)
        assert get_ops("cpu", "reference", layout, group).name == "reference"
    for group in (None, 1, 16, 20, 34):
        assert get_ops("cpu", "cuda-emulated", layout, group).name == "cuda-emulated"
        open_shape(dim, group or 1, 128)  # what is inside an open page takes as many


def test_an_nvcc_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NVCC_ENV, "/nowhere/nvcc")
    find_nvcc.cache_clear()
    try:
        with pytest.raises(CompileError, match="LEANKV_NVCC names /nowhere/nvcc, which cannot be run"):
            find_nvcc()
    finally:
        find_nvcc.cache_clear()
