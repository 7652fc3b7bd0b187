"""A pool that holds more tokens than it has units, because pages shrink in place; and hits stay what misses are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from bench.common.server import Server
from tests.e2e.forked import Zygote
from tests.e2e.hits import assert_hits_equal_misses, assert_same, misses
from tests.e2e.prompts import tiny_passages

UNITS = 3072


@pytest.fixture(scope="module")
def small(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    pool = ("--max-total-tokens", str(UNITS), "--max-running-requests", "4", "--chunked-prefill-size", "512")
    env = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
    # Every far token low: a trimmed page costs little more than half.
    method = ("--leankv-significance", "none", "--leankv-demote")
    with zygote.serve("--model-path", str(tiny), *pool, *method, env=env) as server:
        yield server


def test_hits_on_trimmed_paths_equal_misses(small: Server) -> None:
    prompts = tiny_passages(5, 300, 1100, seed=5)
    branches = [p[: len(p) * 2 // 3] + prompts[0][:150] for p in prompts[1:]]
    alone = misses(small, branches, 12)
    # Prompts that part nowhere have near parts trimmed; branches of them run over what was trimmed.
    assert_hits_equal_misses(small, prompts, 12)
    for branch, miss in zip(branches, alone, strict=True):
        assert_same(small.generate(branch, 12), miss)
    before = small.info()["leankv"]
    assert before["pages_trimmed"] > 0
    # The longest is trimmed as the one asked for longest ago; computing a branch of it makes its pages whole again.
    small.flush()
    small.generate(prompts[-1], 12)
    for other in tiny_passages(12, 400, 400, seed=8):
        if small.info()["leankv"]["pages_trimmed"] > before["pages_trimmed"]:
            break
        small.generate(other, 1)
    assert_same(small.generate(branches[-1], 12), alone[-1])
    assert small.info()["leankv"]["pages_healed"] > before["pages_healed"]


def test_the_tree_holds_more_tokens_than_units(small: Server) -> None:
    small.flush()
    prompts = tiny_passages(9, 400, 500, seed=6)
    for prompt in prompts:
        small.generate(prompt, 1)
    figures = small.info()["leankv"]
    assert figures["tokens_held"] == 9 * 384
    assert figures["tokens_held"] > UNITS
    # Only interior pages were cut, so every prompt is still hit to its end.
    for prompt in prompts:
        assert small.generate(prompt, 1).cached == 384
    assert figures["ratio"] > 2.7  # 2.4 before any page was cut


def test_nothing_leaks_and_a_flush_gives_everything_back(small: Server) -> None:
    small.flush()
    figures = small.info()["leankv"]
    assert figures["units_free"] == figures["units_total"] == UNITS
    assert figures["blocks_free"] == figures["blocks_total"]
    assert figures["device_reads"] == 0, "every page's id was known on the host"
    log = small.log_text()
    assert not [word for word in ("leak", "[pool-bytes]", "Traceback") if word in log]


def test_a_prompt_longer_than_the_pool_is_refused_with_a_sentence(small: Server) -> None:
    """And the server goes on."""
    body = {"input_ids": [7] * (UNITS + 200), "sampling_params": {"max_new_tokens": 4}}
    answer = requests.post(small.url + "/generate", json=body, timeout=120)
    assert answer.status_code == 400
    assert small.generate([7] * 200, 8).finish == "length"
