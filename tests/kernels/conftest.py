"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernelutil import TRITON, Backend, Committed, backend_named, sample

from leankv_kernels import Ops, get_ops


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are so small that threads waiting for each other take longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ops() -> Ops:
    """The ops that are the specification."""
    return get_ops("cpu", "reference")


FAST = ["cpu-avx512", "cpu-avx2", "cpu-portable", *TRITON]


@pytest.fixture(scope="session", params=FAST)
def fast(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every backend but the specification."""
    with backend_named(request.param) as backend:
        yield backend


@pytest.fixture(scope="session", params=["reference", *FAST])
def any_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every backend."""
    with backend_named(request.param) as backend:
        yield backend


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Committed:
    """See ``every_sample``."""
    return sample(*request.param)
