"""Resident memory of a server's processes, looked at from outside while it works."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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

    def most(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """The largest sample between two times, in seconds since the start; NaN without any."""
        return max((m for s, m in zip(self.seconds, self.mib, strict=True) if begin <= s < end), default=float("nan"))

    def growth(self, settled: float) -> float:
        """MiB by which the last quarter's largest sample is above that of the second half of the first ``settled``
        seconds, in which a server has seen all kinds of work."""
        last = self.seconds[-1] if self.seconds else 0.0
        return self.most(max(settled, 0.75 * last)) - self.most(0.5 * settled, settled)


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
