"""Real servers on the real model, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.common.server import Server, serve

POOL_TOKENS = 16384


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts servers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The default configuration, which is the shipped profile's lossless point; metrics on."""
    with serve("--max-total-tokens", str(POOL_TOKENS), "--enable-metrics") as running:
        yield running


@pytest.fixture(scope="session")
def plain() -> Iterator[Server]:
    """No profile: one pair of thresholds for all heads, nothing pruned; metrics on."""
    with serve("--max-total-tokens", str(POOL_TOKENS), "--enable-metrics", "--leankv-profile", "none") as running:
        yield running
