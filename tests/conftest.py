"""Shared set-up: sglang must find its CPU shims before any test imports it; what ``make test`` divides how."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from leankv_kernels import available_backends
from leankv_sglang.environment import has_accelerator, prepare_cpu

if not has_accelerator():
    prepare_cpu()

ROOT = Path(__file__).parent
SERVERS = ("server", "plain", "small", "told")
"""Fixtures that start a server (or an engine), which the tests that ask for them share."""
FIRST = ("server", "kernels", *SERVERS[1:], "e2e", "calibrate")
"""Groups that take long, longest first: a process that gets one late works alone in the end."""

SLOW_FILES = ("test_triton_interpreted.py", "test_triton.py", "test_same_bits.py", "test_record_bytes.py")
"""Of the kernels' tests: Triton's compiler and interpreter, and the specification over whole sequences or all bits."""
LESSER_ISAS: list[str] = []
"""The cpu kernels' instruction sets below this CPU's best, as tests name them."""

if "cpu" in available_backends():
    from leankv_kernels import cpu

    LESSER_ISAS += [f"cpu-{isa}" for isa in cpu.isas()[1:]]

settings.register_profile("fast", max_examples=10)


def pytest_configure(config: pytest.Config) -> None:
    """Of several processes each has its share of the cores: threads that wait for each other's cores cost more."""
    if hasattr(config, "workerinput"):
        workers = int(config.workerinput["workercount"])
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist a group stays in one process, and groups begin in the order of the items."""
    whole = "not slow" not in config.option.markexpr
    for item in items:
        if _is_slow(item):
            item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.xdist_group(_group(item, whole)))
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _is_slow(item: pytest.Item) -> bool:
    """Of the kernels' tests; others say so themselves."""
    return item.path.name in SLOW_FILES or any(isa in item.name for isa in LESSER_ISAS)


def _group(item: pytest.Item, whole: bool) -> str:
    """By the server that is asked, or by file; in the whole suite the kernels' tests by folder, since a run in the
    interpreter begins with the first of them."""
    for name in SERVERS:
        if name in getattr(item, "fixturenames", ()):
            return name
    parts = item.path.relative_to(ROOT).parts
    return "kernels" if whole and parts[0] == "kernels" else "/".join(parts)


def _turn(item: pytest.Item) -> int:
    name = _group(item, whole=True)
    folder = name.split("/")[0]
    return FIRST.index(name) if name in FIRST else FIRST.index(folder) if folder in FIRST else len(FIRST)
