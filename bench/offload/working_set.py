"""A working set three times what the device holds, with and without host memory behind it."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any

from bench.common.server import Server, serve
from bench.serving.__main__ import answers_of
from bench.serving.workloads import Job, conversations

CLIENTS = 4


def working_set_rows(requests: int, rounds: int) -> list[dict[str, Any]]:
    """Conversations of Mooncake's trace, shrunk by 4, asked in turn of two servers with the same pool."""
    jobs = conversations(requests, 4, 3000, 16)
    held = _held_by_a_set(jobs)
    # A page of the default point takes about 0.45 units a token once trimmed.
    pool = max(4096, int(0.45 * held / 3) // 128 * 128)
    common = ("--max-total-tokens", str(pool), "--max-running-requests", str(CLIENTS), "--chunked-prefill-size", "1024")
    systems = {"device alone": (), "with host memory": ("--leankv-host-memory", "2GiB")}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serve(*common, *flags)) for name, flags in systems.items()}
        for _ in range(rounds):
            for name, server in servers.items():
                found[name].append(_round(server, jobs, name))
    rows = []
    for name, runs in found.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append({"system": name, "pool, tokens reserved": pool, "tokens of the set": held, **median})
    return rows


def _held_by_a_set(jobs: list[Job]) -> int:
    """Distinct tokens in whole pages, by their prefixes."""
    seen = {tuple(job.prompt[: end * 128]) for job in jobs for end in range(1, len(job.prompt) // 128 + 1)}
    return 128 * len(seen)


def _round(server: Server, jobs: list[Job], name: str) -> dict[str, float]:
    server.flush()
    answers, seconds = answers_of(server, jobs, CLIENTS, name)
    prompt = sum(answer.prompt for answer in answers)
    return {
        "hit rate": sum(answer.cached for answer in answers) / prompt,
        "prompt tok/s": prompt / seconds,
        "median ms to first token": 1000 * statistics.median(answer.first for answer in answers),
    }
