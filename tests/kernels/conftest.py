"""Fixtures of the kernel tests."""

from __future__ import annotations

import pytest
from kernelutil import Committed, sample

from leankv_kernels import Ops, get_ops


@pytest.fixture(scope="session")
def ops() -> Ops:
    """The ops that are the specification."""
    return get_ops("cpu", "reference")


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Committed:
    """See ``every_sample``."""
    return sample(*request.param)
