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
    before, deadline = set(folder.iterdir()), time.monotonic() + seconds
    # Prompts are cached first.
    ask(server, prompts, 1)
    enough = threading.Event()
    asking = threading.Thread(target=_decode, args=(server, prompts, 40 * steps, enough), daemon=True)
    asking.start()
    time.sleep(0.3)
    body: dict[str, Any] = {"output_dir": str(folder), "num_steps": steps, "activities": activities}
    file = None
    try:
        _tell(server, "/start_profile", body | {"with_stack": False, "record_shapes": False})
        while file is None and time.monotonic() < deadline:
            time.sleep(0.1)
            file = next((new for new in set(folder.iterdir()) - before if _is_whole(new)), None)
    finally:
        enough.set()
        with suppress(Exception):
            _tell(server, "/abort_request", {"abort_all": True})
            if file is None:
                _tell(server, "/stop_profile", {})
        asking.join(max(deadline - time.monotonic(), 1.0))
    return file


def _decode(server: Server, prompts: list[list[int]], tokens: int, enough: threading.Event) -> None:
    """Have a server decode, again and again: a profiler that starts late would wait for steps that are over."""
    # What becomes of these answers does not matter.
    with suppress(Exception):
        while not enough.is_set():
            ask(server, prompts, tokens)


def _is_whole(file: Path) -> bool:
    """Whether a trace has been written to its end."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            last = b""
            while piece := stream.read(1 << 20):
                last = (last + piece)[-16:]
    except (EOFError, OSError):
        return False
    return last.rstrip().endswith(b"}")


def _tell(server: Server, path: str, body: dict[str, Any]) -> None:
    import requests

    requests.post(server.url + path, json=body, timeout=60).raise_for_status()
