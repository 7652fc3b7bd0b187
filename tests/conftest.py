"""Shared set-up: sglang must find its CPU shims before any test imports it; what ``make test`` divides how."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from leankv_sglang.environment import has_accelerator, prepare_cpu

if not has_accelerator():
    prepare_cpu()

ROOT = Path(__file__).parent
SERVERS = ("server", "plain", "small", "told")
"""Fixtures that start a server (or an engine), which the tests that ask for them share."""
FIRST = (*SERVERS, "kernels", "e2e", "calibrate")
"""Groups that take long, longest first: a process that gets one late works alone in the end."""

settings.register_profile("fast", max_examples=10)


def pytest_configure(config: pytest.Config) -> None:
    """Of several processes each has its share of the cores: threads that wait for each other's cores cost more."""
    if hasattr(config, "workerinput"):
        workers = int(config.workerinput["workercount"])
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist a group stays in one process, and groups begin in the order of the items."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _group(item: pytest.Item) -> str:
    """By the server that is asked, or by file; the kernels' tests by folder, since a run in the interpreter begins
    with the first of them."""
    for name in SERVERS:
        if name in getattr(item, "fixturenames", ()):
            return name
    parts = item.path.relative_to(ROOT).parts
    return "kernels" if parts[0] == "kernels" else "/".join(parts)


def _turn(item: pytest.Item) -> int:
    name = _group(item)
    folder = name.split("/")[0]
    return FIRST.index(name) if name in FIRST else FIRST.index(folder) if folder in FIRST else len(FIRST)
