"""The compiled module: which instruction sets it offers, and one OpenMP runtime for it and torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leankv_kernels.cpu.extension import _cpu
from tests.kernels.draws import small_layout


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = _cpu.isa()
    yield
    _cpu.use_isa(before)


def test_every_instruction_set_that_runs_here_can_be_chosen() -> None:
    assert _cpu.isas()[-1] == "portable"
    for name in _cpu.isas():
        _cpu.use_isa(name)
        assert _cpu.isa() == name


def test_another_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r'^instruction set "mmx" is not available: choose one of .*portable\.$'):
        _cpu.use_isa("mmx")


def test_torch_and_the_kernels_share_one_openmp_runtime() -> None:
    """Two would each start a thread for every core."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is loaded")
    assert len({line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}) == 1


@pytest.mark.parametrize("changes", [{"key_base_bits": 6}, {"value_base_bits": 3}, {"value_refine_bits": 1}], ids=str)
def test_planes_that_nothing_is_written_for_are_refused(changes: dict[str, int]) -> None:
    shape = asdict(small_layout().shape)
    _cpu.RecordShape(**shape)
    with pytest.raises(ValueError, match="not written for planes of these tiers"):
        _cpu.RecordShape(**(shape | changes))


def merge(**changes: Tensor) -> None:
    """Merges two states of three queries, some tensors being others than they should be."""
    outs, lses = torch.zeros(3, 2, 16), torch.zeros(3, 2)
    states = {"out_a": outs, "lse_a": lses, "out_b": outs, "lse_b": lses, "out": outs.clone(), "lse": lses.clone()}
    states |= changes
    _cpu.merge_states(**states, sinks=torch.zeros(states["out"].shape[1]), threads=1)


def test_tensors_of_any_strides_that_say_the_same_are_taken() -> None:
    """Strides of a dimension of one, and those of nothing, do not matter."""
    merge()
    merge(out_a=torch.zeros(3, 2, 32)[..., :16].contiguous())
    one, lse = torch.zeros(16, 1, 1).permute(1, 2, 0), torch.zeros(1, 1)
    merge(out_a=one, lse_a=lse, out_b=one, lse_b=lse, out=one.clone(), lse=lse.clone())
    none, lse = torch.zeros(0, 16, 2).transpose(1, 2), torch.zeros(0, 2)
    merge(out_a=none, lse_a=lse, out_b=none, lse_b=lse, out=none, lse=lse)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lse_a": torch.zeros(3, 2, dtype=torch.int32)}, r"lse_a as float32 \[3, 2\], .*not as int32 \[3, 2\]\."),
        ({"out_b": torch.zeros(3, 2, 8)}, r"out_b as float32 \[3, 2, 16\], .*not as float32 \[3, 2, 8\]\."),
        ({"lse_b": torch.zeros(6)}, r"lse_b as float32 \[3, 2\], .*not as float32 \[6\]\."),
        ({"out_a": torch.zeros(2, 3, 16).transpose(0, 1)}, r"out_a as .*, contiguous in .* with other strides\."),
        ({"lse": torch.zeros(3, 2, device="meta")}, r"lse as float32 \[3, 2\], .* not as a tensor without memory\."),
    ],
    ids=["dtype", "shape", "dimensions", "strides", "device"],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(changes: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=f"the cpu kernels want {says}"):
        merge(**changes)


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        merge(lse=[0.0])  # type: ignore[arg-type]


def test_a_dtype_that_no_model_has_is_refused() -> None:
    q, key = torch.zeros(1, 1, 16, dtype=torch.float64), torch.zeros(1, 16, 1, 16)
    scores, at = torch.zeros(1, 1, 16, dtype=torch.int32), torch.zeros(0, dtype=torch.int64)
    tiles, out, lse = torch.zeros(0, 5, dtype=torch.int64), torch.zeros(1, 1, 16), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="float32, bfloat16 and float16, not float64 for q: use another backend"):
        _cpu.attend_open(
            q=q, key=key, value=key, scores=scores, at=at, tiles=tiles, out=out, lse=lse, scale=1.0, cap=0.0, threads=1
        )
