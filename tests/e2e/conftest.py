"""Real servers, shared by the tests of this folder: the default one on the real model, others on a tiny random model.

What a server costs is its start and the tokens it prefills, so the real model is asked where it is the point, and
servers on the tiny one are forked (forked.py) but for those of test_engine.py and test_pressure.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.common.server import Server, serve
from tests.e2e.forked import Zygote
from tests.tiny_models import tiny_folder

POOL_TOKENS = 16384
WORKERS = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts servers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with 4 layers, 4 query heads and 2 KV heads of 64."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The default configuration, which is the shipped profile's near-lossless point; metrics on."""
    with serve("--max-total-tokens", str(POOL_TOKENS), "--enable-metrics") as running:
        yield running


@pytest.fixture(scope="session")
def plain(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    """No profile: one pair of thresholds for all heads, nothing pruned.

    Prompts are prefilled page by page. Tokenizer workers are processes of their own, which import the HTTP app again.
    """
    flags = ("--chunked-prefill-size", "128", "--tokenizer-worker-num", str(WORKERS), "--leankv-profile", "none")
    with zygote.serve("--model-path", str(tiny), "--max-total-tokens", str(POOL_TOKENS), *flags) as running:
        yield running
