"""Two tensor-parallel ranks agree on what pages cost, and on what they load, although their heads differ in length; two
replicas just serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from bench.common.server import Server
from tests.e2e.conversations import Conversation, assert_turns_equal_misses
from tests.e2e.forked import Zygote
from tests.e2e.hits import assert_hits_equal_misses
from tests.e2e.prompts import tiny_passages
from tests.tiny_models import tiny_folder

POOL = ("--max-total-tokens", "2048", "--chunked-prefill-size", "256", "--max-running-requests", "4")
TROUBLE = ("leak", "[pool-bytes]", "Traceback", "differ")


def ask_under_pressure(server: Server, count: int) -> None:
    """Prompts that the pool cannot hold together, asked over and over; every answer is that of an empty cache."""
    assert_hits_equal_misses(server, tiny_passages(count, 150, 900, seed=3), 16)
    assert not [word for word in TROUBLE if word in server.log_text()]


def test_two_tensor_parallel_ranks(tiny: Path, zygote: Zygote, tmp_path: Path) -> None:
    # One KV head on each rank, and thresholds at which they keep different shares of tokens. Each rank has places of
    # its own beyond the device, too small for all; they load together or not at all.
    flags: tuple[str, ...] = ("--leankv-alpha-high", "1.2", "--leankv-alpha-low", "0.4")
    flags += ("--leankv-host-memory", "1MiB", "--leankv-store", f"file:{tmp_path}", "--leankv-store-size", "2MiB")
    flags += ("--enable-streaming-session",)
    env = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
    with zygote.serve("--model-path", str(tiny), "--tp-size", "2", *POOL, *flags, env=env) as server:
        ask_under_pressure(server, 6)
        figures = server.info()["leankv"]
        assert figures["pages_trimmed"] > 0
        assert figures["tokens_held"] > 0
        assert figures["offload"]["pages_in"] > 0
        assert [len(heads) for heads in figures["bytes_by_head"]] == [1] * 4  # of the rank that answers
        talk = Conversation(server)
        for passage in tiny_passages(3, 100, 250, seed=4):
            talk.say(passage, 70)
        talk.close()
        assert [answer.cached > 0 for _, answer in talk.turns] == [False, True, True]
        assert_turns_equal_misses(server, [talk])
        assert not [word for word in TROUBLE if word in server.log_text()]
        assert server.info()["leankv"]["units_free"] == 2048


@pytest.mark.parametrize(("kv_heads", "query_heads"), [(1, 4), (3, 6)])
def test_heads_that_two_ranks_cannot_share_evenly(
    kv_heads: int, query_heads: int, zygote: Zygote, tmp_path: Path
) -> None:
    """On a CPU SGLang fills up with heads of zeros; pages, thresholds of every head and stores go along."""
    folder = tiny_folder(tmp_path / "model", 2, kv_heads, query_heads)
    table = [[0.4 + 0.3 * (layer + head) for head in range(kv_heads)] for layer in range(2)]
    profile = {"name": "uneven", "num_layers": 2, "num_kv_heads": kv_heads, "head_dim": 64}
    (tmp_path / "profile.json").write_text(
        json.dumps(
            {
                "leankv_profile": 2,
                "model": profile,
                "page_size": 128,
                "tiers": "k8v4,k4v2",
                "rotation": "hadamard",
                "significance": "attention",
                "near_pages": 1,
                "points": {"balanced": {"alpha_high": table, "alpha_low": 0.2}},
            }
        )
    )
    flags = ("--leankv-profile", str(tmp_path / "profile.json"), "--leankv-store", f"file:{tmp_path / 'store'}")
    env = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
    with zygote.serve("--model-path", str(folder), "--tp-size", "2", *POOL, *flags, env=env) as server:
        ask_under_pressure(server, 5)
        assert [len(heads) for heads in server.info()["leankv"]["bytes_by_head"]] == [-(-kv_heads // 2)] * 2
        banner = server.log_text().split("LeanKV beneath SGLang")[1]
        assert f"(2 layers, {-(-kv_heads // 2)} KV heads of 64 on each of 2 ranks)" in banner
        server.flush()
        assert server.info()["leankv"]["units_free"] == 2048


def test_two_replicas(tiny: Path, zygote: Zygote) -> None:
    with zygote.serve("--model-path", str(tiny), "--dp-size", "2", *POOL) as server:
        ask_under_pressure(server, 4)
        prompt = tiny_passages(1, 400, 401, seed=9)[0]
        for _ in range(4):
            server.generate(prompt, 2)
        found = server.post("/leankv/probe", {"input_ids": prompt})
        assert [one["rank"] for one in found["ranks"]] == [0, 1]
        assert found["hit_tokens"] == max(one["hit_tokens"] for one in found["ranks"]) > 0
        page = requests.get(server.url + "/leankv?rank=1", timeout=60).text
        assert 'href="leankv?rank=1" aria-current="true"' in page
