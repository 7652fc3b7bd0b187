"""Decode step time and prefill of servers beside each other, asked in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.common.server import Server
from bench.gpu.server.client import ask
from bench.gpu.server.texts import passages


def once(server: Server, prompts: list[list[int]], decode: int) -> dict[str, float]:
    """Prefill in tokens a second, and milliseconds of a decode step: what more tokens take longer than one, both with
    the prompts cached."""
    server.flush()
    prefill, _ = ask(server, prompts, 1)
    short, _ = ask(server, prompts, 1)
    long, _ = ask(server, prompts, 1 + decode)
    return {"step_ms": 1e3 * (long - short) / decode, "prefill": sum(map(len, prompts)) / prefill}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def beside(
    servers: dict[str, Server],
    ids: list[int],
    shapes: Sequence[tuple[int, int]],
    decode: int,
    rounds: int,
    in_time: Callable[[], bool],
    rows: list[dict[str, Any]],
) -> None:
    """A row for each shape and server, added to ``rows`` as they come, with quotients by ``stock`` of the same round.

    Args:
        servers: by name; one that is called ``stock`` is what the others are divided by.
        ids: tokens that prompts are cut from.
        shapes: batch and context.
        decode: tokens of a measurement.
        rounds: of all servers in turn.
        in_time: whether to begin another round; a shape is left out where not even one was done.
        rows: results.
    """
    for batch, context in shapes:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for number in range(rounds + 1):
            if not in_time():
                break
            prompts = passages(ids, batch, context, context, seed=1000 * batch + context + number)
            for name, server in servers.items():
                # The first round compiles what this shape needs.
                if number == 0:
                    server.flush()
                    ask(server, prompts, 3)
                else:
                    found[name].append(once(server, prompts, decode))
        done = min(map(len, found.values()), default=0)
        if not done:
            continue
        for name, runs in found.items():
            row: dict[str, Any] = {"system": name, "batch": batch, "context": context, "rounds": done}
            for what in ("step_ms", "prefill"):
                row[what] = spread([run[what] for run in runs[:done]])
                if name != "stock" and "stock" in found:
                    pairs = zip(runs[:done], found["stock"][:done], strict=True)
                    row[f"{what}_of_stock"] = spread([run[what] / stock[what] for run, stock in pairs])
            rows.append(row)
