"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from kernelutil import INTERPRETED, Backend, Committed, sample

from leankv_kernels import Ops, available_backends, get_ops


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


def _find(name: str) -> Backend:
    if name not in available_backends():
        pytest.skip(f"this checkout has no backend {name}")
    if name == "triton" and torch.cuda.is_available():
        return Backend(get_ops("cuda", name), "cuda")
    if name == "triton" and not INTERPRETED:
        pytest.skip("needs a GPU or Triton's interpreter: test_triton_interpreted.py runs it in a process of its own")
    return Backend(get_ops("cpu", name), "cpu")


@contextmanager
def backend_named(name: str) -> Iterator[Backend]:
    """A backend on the device it is made for, the cpu kernels at one instruction set; skips what cannot run here."""
    name, _, isa = name.partition("-")
    backend = _find(name)
    if not isa:
        yield backend
        return
    from leankv_kernels import cpu

    if isa not in cpu.isas():
        pytest.skip(f"this CPU or this build has no {isa}")
    before = cpu.isa()
    cpu.use_isa(isa)
    yield backend
    cpu.use_isa(before)


FAST = ["cpu-avx512", "cpu-avx2", "cpu-portable", "triton"]


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
