"""Servers on one Mooncake master: each finds what others computed, and none of them needs the others to answer."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.offload.first_token import beyond, settled
from bench.offload.master import has_mooncake, mooncake_master
from tests.e2e.forked import Zygote
from tests.e2e.hits import assert_same
from tests.e2e.prompts import tiny_passages
from tests.e2e.test_offload import ask, full_pages

pytestmark = pytest.mark.skipif(
    not has_mooncake(), reason="needs the package mooncake-transfer-engine-non-cuda, and libibverbs1 and librdmacm1"
)


def test_servers_share_pages_and_answer_without_each_other(tiny: Path, zygote: Zygote) -> None:
    prompts = tiny_passages(4, 300, 900, seed=13)
    with mooncake_master() as (address, master), ExitStack() as stack:
        flags = (
            "--model-path",
            str(tiny),
            "--max-total-tokens",
            "8192",
            "--leankv-store",
            address,
            "--leankv-load",
            "always",
        )
        a, b = (stack.enter_context(zygote.serve(*flags, "--leankv-store-size", "64MiB")) for _ in range(2))
        first = ask(a, prompts)
        settled(a, "mooncake")
        for prompt, miss, hit in zip(prompts, first, ask(b, prompts), strict=True):
            assert (miss.cached, hit.cached) == (0, full_pages(prompt))
            assert_same(hit, miss)
        assert beyond(b)["pages_from_store"] > 0

        # The master goes: both answer, from what they have or compute.
        os.kill(master.pid, signal.SIGKILL)
        master.wait()
        time.sleep(3)
        for server in (a, b):
            server.flush()
            start = time.monotonic()
            for prompt, miss, answer in zip(prompts, first, ask(server, prompts), strict=True):
                assert answer.cached == 0, prompt[:3]
                assert_same(answer, miss)
            assert time.monotonic() - start < 30

        # It comes back, with nothing: what is computed from then on is shared again.
        port = int(address.rpartition(":")[2])
        stack.enter_context(mooncake_master(port))
        fresh = tiny_passages(2, 300, 500, seed=14)
        deadline = time.monotonic() + 60
        while True:
            a.flush()
            told = ask(a, fresh)
            settled(a, "mooncake")
            b.flush()
            found = ask(b, fresh)
            if all(answer.cached for answer in found) or time.monotonic() > deadline:
                break
            time.sleep(2)
        assert [answer.cached for answer in found] == list(map(full_pages, fresh))
        for answer, miss in zip(found, told, strict=True):
            assert_same(answer, miss)

        # One server is killed while the other loads what it gave: the other answers on.
        b.flush()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, b, [prompt]) for prompt in (*fresh, *prompts)]
            os.killpg(a.process.pid, signal.SIGKILL)
            answers = [job.result()[0] for job in asked]
        for answer, miss in zip(answers, (*told, *first), strict=True):
            assert_same(answer, miss)
        b.flush()
        for answer, miss in zip(ask(b, prompts), first, strict=True):
            assert_same(answer, miss)
