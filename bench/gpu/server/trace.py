"""Where the GPU waits for the host: gaps between kernels in a trace of SGLang's profiler."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.common.server import Server
from bench.gpu.server.client import ask

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a Chrome trace that say the GPU was busy."""
LONG_US = 100.0
BEGIN, END = 0.15, 0.05
"""Shares of a trace that are left out: the profiler's own start and end."""


def gaps(events: Iterable[dict[str, Any]], begin: float = BEGIN, end: float = END) -> dict[str, Any] | None:
    """The times at which nothing ran on the GPU, between the first and the last of what did.

    Args:
        events: ``traceEvents`` of a Chrome trace, in microseconds.
        begin, end: shares of the time that are left out.

    Returns:
        The longest gap, how many are over ``LONG_US`` and after what they came, the busy share, and the number of
        launches; None where the trace has none.
    """
    busy = sorted(
        (float(e["ts"]), float(e["ts"]) + float(e.get("dur", 0.0)), str(e.get("name", "")))
        for e in events
        if e.get("ph") == "X" and str(e.get("cat", "")).lower() in ON_GPU
    )
    if len(busy) < 2:
        return None
    first, last = busy[0][0], max(stop for _, stop, _ in busy)
    low, high = first + begin * (last - first), last - end * (last - first)
    found: list[tuple[float, str]] = []
    idle = 0.0
    until, name = busy[0][1], busy[0][2]
    for start, stop, this in busy:
        if start > until and start > low and until < high:
            found.append((start - until, name))
            idle += min(start, high) - max(until, low)
        if stop > until:
            until, name = stop, this
    long = sorted(((gap, after) for gap, after in found if gap > LONG_US), reverse=True)
    return {
        "longest_us": max((gap for gap, _ in found), default=0.0),
        "over_100us": len(long),
        "after": [{"us": gap, "after": after[:120]} for gap, after in long[:5]],
        "busy": 1.0 - idle / (high - low) if high > low else None,
        "launches": len(busy),
        "span_us": last - first,
    }


def read(file: Path) -> list[dict[str, Any]]:
    """The events of a trace, compressed or not."""
    data = file.read_bytes()
    events: list[dict[str, Any]] = json.loads(gzip.decompress(data) if file.suffix == ".gz" else data)["traceEvents"]
    return events


def profile(
    server: Server, prompts: list[list[int]], steps: int, folder: Path, activities: list[str], seconds: float
) -> Path | None:
    """A trace of so many decode steps of a batch, None where none was written in time."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    # Prompts are cached first, and tokens enough are asked for that the profile ends before they do.
    ask(server, prompts, 1)
    asking = threading.Thread(target=_decode, args=(server, prompts, 40 * steps), daemon=True)
    asking.start()
    time.sleep(0.3)
    body: dict[str, Any] = {"output_dir": str(folder), "num_steps": steps, "activities": activities}
    _start(server, body | {"with_stack": False, "record_shapes": False})
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for file in set(folder.iterdir()) - before:
            size = file.stat().st_size
            time.sleep(0.5)
            if size and file.stat().st_size == size:
                asking.join(seconds)
                return file
        time.sleep(0.2)
    return None


def _decode(server: Server, prompts: list[list[int]], tokens: int) -> None:
    # What becomes of these answers does not matter.
    with suppress(Exception):
        ask(server, prompts, tokens)


def _start(server: Server, body: dict[str, Any]) -> None:
    import requests

    requests.post(server.url + "/start_profile", json=body, timeout=60).raise_for_status()
