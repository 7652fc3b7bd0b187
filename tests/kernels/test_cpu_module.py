"""The compiled module: which instruction sets it offers, and one OpenMP runtime for it and torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from leankv_kernels.cpu.extension import _cpu


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
