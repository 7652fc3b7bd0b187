"""The header by which C++ and CUDA know the record format, and the shape that the compiled kernels are given."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from leankv_kernels.cpu.extension import _cpu
from leankv_kernels.layout import RecordShape, header
from tests.kernels.draws import small_layout


def test_the_committed_header_is_the_one_that_is_written() -> None:
    """Run ``python -m leankv_kernels.layout.header`` where it is not."""
    assert header.PATH.read_text() == header.render()


def test_the_compiled_shape_has_the_fields_of_the_layout() -> None:
    shape = small_layout("k8v4,k4v4,k4v2").shape
    compiled = _cpu.RecordShape(**asdict(shape))
    for field in fields(RecordShape):
        assert getattr(compiled, field.name) == getattr(shape, field.name)


def test_a_shape_with_other_fields_is_refused() -> None:
    shape = asdict(small_layout().shape)
    with pytest.raises(TypeError, match="no other fields"):
        _cpu.RecordShape(**shape, window=1)
    del shape["near"]
    with pytest.raises(KeyError, match="near"):
        _cpu.RecordShape(**shape)
