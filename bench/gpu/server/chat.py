"""Requests that share system prompts, at equal bytes of KV cache beside stock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.common.server import Server
from bench.gpu.server.client import ask
from bench.gpu.server.sizes import Chat
from bench.serving.workloads import Job, shared_prefix


def load(chat: Chat, ids: list[int]) -> list[Job]:
    """The requests."""
    return shared_prefix(chat.groups, chat.per_group, chat.system, chat.question, chat.output, ids=ids)


def replay(server: Server, jobs: list[Job], clients: int) -> dict[str, float]:
    """All requests in order from an empty cache, so many at a time."""
    server.flush()
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda job: ask(server, [job.prompt], job.new_tokens), jobs))
    seconds = time.perf_counter() - begin
    prompts = sum(len(job.prompt) for job in jobs)
    return {
        "tok_per_s": (prompts + sum(job.new_tokens for job in jobs)) / seconds,
        "hit_rate": sum(cached for _, cached in answers) / prompts,
        "latency_ms_p50": 1e3 * statistics.median(took for took, _ in answers),
        "seconds": seconds,
    }


def compare(
    servers: dict[str, Server],
    jobs: list[Job],
    chat: Chat,
    in_time: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Systems in turn, medians over the rounds that all of them did; nothing where that is none."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for _ in range(chat.rounds):
        for name, server in servers.items():
            if in_time():
                found[name].append(replay(server, jobs, chat.clients))
    done = min(map(len, found.values()), default=0)
    rows: list[dict[str, Any]] = []
    for name, runs in found.items() if done else ():
        row: dict[str, Any] = {"system": name, "rounds": done}
        row |= {key: statistics.median(run[key] for run in runs[:done]) for key in runs[0]}
        rows.append(row)
    return rows
