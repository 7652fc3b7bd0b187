"""Work that is done a little at a time, between the steps of a server that has others to serve."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator

SHARE = 0.01
"""Part of the time between steps that may go into slices."""
MOST_SECONDS = 0.0002
"""What one step may be longer by, beside the piece that is begun last."""
PIECE_SECONDS = 0.0001
"""What one piece of a task should take."""
MOST_GROWTH = 1.25
"""Of a piece beside the one before it: what comes next may not be as warm."""

Task = Iterator[None]
"""Does a piece of work whenever it is asked for its next value, and is over when it has none."""


class Slices:
    """Tasks that wait for time: urgent ones first, else first come, first served.

    Args:
        clock: seconds.
        computing: seconds that this thread has computed for, without those in which others had its core.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, computing: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._computing, self._tasks = clock, computing, deque[Task]()
        self._credit, self._last = 0.0, clock()
        self.longest = 0.0
        """Seconds of computing that any step of a busy server was longer by."""
        self.longest_clock = 0.0
        """The same on the clock, which goes on while other threads and processes have the core."""

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def add(self, task: Task, urgent: bool = False) -> None:
        """Have a task done once those before it are, or before all others: a large tree takes its time."""
        if urgent:
            self._tasks.appendleft(task)
        else:
            self._tasks.append(task)

    def between_steps(self) -> None:
        """Work for a part of the time since this was called last; what a piece takes too long is taken off the next
        times."""
        begun, computed = self._clock(), self._computing()
        self._credit = min(MOST_SECONDS, self._credit + SHARE * (begun - self._last))
        self._last = begun
        left = self._credit
        while self._tasks and left > 0:
            self._piece()
            left = self._credit - (self._clock() - begun)
        self._credit = left
        self.longest = max(self.longest, self._computing() - computed)
        self.longest_clock = max(self.longest_clock, self._clock() - begun)

    def while_idle(self, wanted: Callable[[], bool]) -> None:
        """Work until all is done, or somebody is wanted elsewhere, which is asked after every piece."""
        while self._tasks and not wanted():
            self._piece()
        self._last = self._clock()

    def _piece(self) -> None:
        try:
            next(self._tasks[0])
        except StopIteration:
            self._tasks.popleft()
        except BaseException:
            self._tasks.popleft()
            raise


class PieceSize:
    """How many things a piece takes, so that it lasts about as long as it should.

    Args:
        size: to begin with.
        clock: seconds of computing.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.thread_time) -> None:
        self.size, self._clock, self._begun = size, clock, 0.0

    def begin(self) -> None:
        """A piece of ``size`` things begins."""
        self._begun = self._clock()

    def end(self) -> None:
        """It is over."""
        took = max(self._clock() - self._begun, 1e-9)
        # One measurement is noisy.
        grown = self.size * min(MOST_GROWTH, max(0.5, PIECE_SECONDS / took))
        self.size = max(1, int(grown) if grown < self.size else math.ceil(grown))
