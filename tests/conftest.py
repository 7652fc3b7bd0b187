"""Shared set-up: sglang must find its CPU shims before any test imports it; what ``make test`` divides how."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from leankv_kernels import available_backends
from leankv_sglang.environment import has_accelerator, keep_rows_alike, prepare_cpu

if TYPE_CHECKING:
    from tests.e2e.forked import Zygote

if not has_accelerator():
    keep_rows_alike()
    prepare_cpu()
# Before anything imports the standard library's distutils: SGLang compiles its page hash by setuptools, which minds.
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

SERVERS = {
    "tests/e2e/test_hit_equals_miss.py": "server",
    "tests/e2e/test_examples.py": "server",
    "tests/e2e/test_openai_clients.py": "server",
    "tests/e2e/test_server_reports.py": "server",
    "tests/e2e/test_request_accuracy.py": "plain",
    "tests/e2e/test_held_bytes.py": "plain",
    "tests/e2e/test_seeds.py": "plain",
}
"""Files whose tests share a server."""
FIRST = ("server", "tests/kernels", "tests/e2e", "plain", "tests/calibrate")
"""Where groups begin that take long, longest first: a process that gets one late works alone in the end."""

SLOW_FILES = ("test_triton_interpreted.py", "test_triton.py", "test_same_bits.py", "test_record_bytes.py")
"""Of the kernels' tests: Triton's compiler and interpreter, and the specification over whole sequences or all bits."""
LESSER_ISAS: list[str] = []
"""The cpu kernels' instruction sets below this CPU's best, as tests name them."""

if "cpu" in available_backends():
    from leankv_kernels import cpu

    LESSER_ISAS += [f"cpu-{isa}" for isa in cpu.isas()[1:]]

# No example has a time to keep: other processes take what they like of the machine.
settings.register_profile("whole", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=10)
settings.load_profile("whole")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts servers in a tenth of the time."""
    from tests.e2e.forked import Zygote

    running = Zygote()
    yield running
    running.stop()


def pytest_configure(config: pytest.Config) -> None:
    """Of several processes each has its share of the cores: threads that wait for each other's cores cost more."""
    if hasattr(config, "workerinput"):
        workers = int(config.workerinput["workercount"])
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow; under pytest-xdist groups begin in the order of the items."""
    for item in items:
        if _is_slow(item):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _turn(_group(item.nodeid, whole=True)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A group stays in one process. (The mark ``xdist_group`` does nothing with pytest 9.2 and pytest-xdist 3.8.)"""
    from xdist.scheduler import LoadScopeScheduling

    whole = "not slow" not in config.option.markexpr

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid, whole)

    return Groups(config, log)


def _is_slow(item: pytest.Item) -> bool:
    """Of the kernels' tests; others say so themselves."""
    return item.path.name in SLOW_FILES or any(isa in item.name for isa in LESSER_ISAS)


def _group(nodeid: str, whole: bool) -> str:
    """By the server that is asked, or by file; in the whole suite the kernels' tests by folder, since a run in the
    interpreter begins with the first of them."""
    file = nodeid.split("::")[0]
    return "tests/kernels" if whole and file.startswith("tests/kernels/") else SERVERS.get(file, file)


def _turn(group: str) -> int:
    return next((i for i, first in enumerate(FIRST) if group.startswith(first)), len(FIRST))
