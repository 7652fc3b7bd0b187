"""Servers that keep pages beyond the device: what they compute outlives them, and what comes back is what left."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common.server import Completion, Server
from bench.offload.first_token import beyond, settled
from tests.e2e.forked import Zygote
from tests.e2e.hits import PAGE, asked_after_a_probe, assert_same
from tests.e2e.prompts import tiny_passages

PRUNED = ("--leankv-alpha-low", "0.3", "--leankv-alpha-high", "1.5")
NEW_TOKENS = 6


def full_pages(prompt: Sequence[int]) -> int:
    """Tokens that a hit may have of a prompt."""
    return (len(prompt) - 1) // PAGE * PAGE


def ask(server: Server, prompts: Sequence[list[int]], **fields: Any) -> list[Completion]:
    return [server.generate(prompt, NEW_TOKENS, fields=fields) for prompt in prompts]


def test_pages_outlive_a_killed_server_and_are_found_by_its_like_alone(
    tiny: Path, zygote: Zygote, tmp_path: Path
) -> None:
    common = ("--model-path", str(tiny), "--max-total-tokens", "8192", "--leankv-load", "always")
    common += ("--leankv-store", f"file:{tmp_path}")
    prompts = tiny_passages(3, 150, 900, seed=11)
    with zygote.serve(*common, *PRUNED) as server:
        first = ask(server, prompts)
        small = ask(server, prompts[:1], leankv={"alpha_high": 9.0})
        held = settled(server, "disk")
        assert held["objects"] == held["puts"] > sum(map(full_pages, prompts)) // PAGE
        os.killpg(server.process.pid, signal.SIGKILL)

    with zygote.serve(*common, *PRUNED) as server:
        found = server.post("/leankv/probe", {"input_ids": prompts[0]})
        assert found["hit_from"] == {"device": 0, "host": 0, "storage": full_pages(prompts[0])}
        for prompt, answer, miss in zip(prompts, ask(server, prompts), first, strict=True):
            assert (miss.cached, answer.cached) == (0, full_pages(prompt))
            assert_same(answer, miss)
        assert_same(ask(server, prompts[:1], leankv={"alpha_high": 9.0})[0], small[0])
        assert ask(server, prompts[:1], cache_salt="another tenant")[0].cached == 0
        figures = beyond(server)
        assert figures["pages_in"] == figures["pages_from_store"] > 0
        assert figures["refused"] == 0
        # A hit on the device asks nobody.
        again = ask(server, prompts)
        assert [one.cached for one in again] == list(map(full_pages, prompts))
        assert beyond(server)["pages_in"] == figures["pages_in"]

    with zygote.serve(*common, "--leankv-alpha-high", "1.25") as server:
        assert [one.cached for one in ask(server, prompts)] == [0, 0, 0], "other thresholds, other pages"
        for file in tmp_path.rglob("*.page"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        server.flush()
        for answer in ask(server, prompts):
            assert answer.cached == 0
        assert beyond(server)["places"]["disk"]["damaged"] > 0


def test_host_memory_holds_what_the_device_cannot(tiny: Path, zygote: Zygote) -> None:
    flags = (
        "--model-path",
        str(tiny),
        "--max-total-tokens",
        "1536",
        "--leankv-host-memory",
        "64MiB",
        "--enable-metrics",
    )
    prompts = tiny_passages(12, 400, 900, seed=12)
    with zygote.serve(*flags, "--leankv-profile", "none") as server:
        misses = ask(server, prompts)
        hits = [asked_after_a_probe(server, prompt, NEW_TOKENS) for prompt in prompts]
        figures = beyond(server)
        server.flush()
        assert beyond(server)["places"]["host"]["objects"] == 0
        assert ask(server, prompts[:1])[0].cached == 0
    for hit, miss in zip(hits, misses, strict=True):
        assert_same(hit, miss)
    assert sum(hit.cached for hit in hits) > 0.8 * sum(map(full_pages, prompts))
    assert figures["pages_in"] > 20
    assert figures["places"]["host"]["hits"] >= figures["pages_in"]
