"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from leankv_kernels import Ops, get_ops
from tests.kernels.interpreted import TEST, InterpretedRun
from tests.kernels.kernelutil import INTERPRETED, TRITON, Backend, Committed, backend_named, sample
from tests.kernels.quick_interpreter import quicken

if INTERPRETED:
    quicken()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are so small that threads waiting for each other take longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def interpreted_run(request: pytest.FixtureRequest) -> Iterator[InterpretedRun | None]:
    """Begins with the first test of this folder where its own test is among those that are run; else None."""
    wanted = any(item.name == TEST for item in request.session.items)
    if not wanted or INTERPRETED or torch.cuda.is_available():
        yield None
        return
    run = InterpretedRun()
    yield run
    run.stop()


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


@pytest.fixture(scope="session")
def cuda() -> Ops:
    """The emulated CUDA kernels."""
    return get_ops("cpu", "cuda-emulated")
