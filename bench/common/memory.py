"""Resident memory of a server's processes, looked at from outside while it works."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import psutil

from bench.common.server import Server


def resident_mib(server: Server, kind: str = "scheduler") -> float:
    """MiB resident of the largest of a server's processes whose name or command holds ``kind``; 0 if there is none."""
    found = [0.0]
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if kind in " ".join([process.name(), *process.cmdline()]):
                found.append(process.memory_info().rss / 2**20)
        except psutil.Error:
            continue
    return max(found)


@dataclass
class Trend:
    """Samples of one process's resident memory."""

    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)

    def between(self, begin: float, end: float = float("inf")) -> list[float]:
        """Samples between two times, in seconds since the start."""
        return [mib for second, mib in zip(self.seconds, self.mib, strict=True) if begin <= second < end]

    def rows(self, every: float = 300.0) -> list[dict[str, float]]:
        """What every five minutes held in the middle and at most. Work comes and goes, and free memory goes back to
        the system now and then, so samples of one minute differ by more than a trend of many."""
        count = int(self.seconds[-1] // every) + 1 if self.seconds else 0
        parts = ((part, self.between(part * every, (part + 1) * every)) for part in range(count))
        return [
            {"from minute": part * every / 60, "median MiB": median(mib), "at most MiB": max(mib)}
            for part, mib in parts
            if mib
        ]

    def growth(self, settled: float) -> float:
        """MiB by which the median of the last quarter is above that of as long a time as ``settled`` seconds after
        those, in which a server has seen all kinds of work; NaN where there was no time for that."""
        last = self.seconds[-1] if self.seconds else 0.0
        early, late = self.between(settled, 2 * settled), self.between(max(2 * settled, 0.75 * last))
        return median(late) - median(early) if early and late else float("nan")


@contextmanager
def watched(server: Server, kind: str = "scheduler", every: float = 2.0) -> Iterator[Trend]:
    """Sample a process of the server while the block runs."""
    trend, stop, start = Trend(), threading.Event(), time.monotonic()

    def sample() -> None:
        while not stop.wait(every):
            if mib := resident_mib(server, kind):
                trend.seconds.append(time.monotonic() - start)
                trend.mib.append(mib)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield trend
    finally:
        stop.set()
        thread.join()
