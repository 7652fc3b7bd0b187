"""Whether a process runs, and whether it ends in time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def runs(pid: int) -> bool:
    """A zombie, which nobody may be there to reap, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_after(seconds: float, pids: Iterable[int]) -> list[int]:
    """Which of them still run then; returns as soon as none does."""
    deadline, left = time.monotonic() + seconds, list(pids)
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [pid for pid in left if runs(pid)]
    return left


def descendants(pid: int) -> list[int]:
    """Its children, and theirs."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
