"""The last quarter of an hour, a sample every few seconds: figures that cost nothing to read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

SECONDS = 5.0
"""Between two samples, while nobody looks."""
KEPT_SECONDS = 900.0
"""How far back samples reach."""


class History:
    """A ring of samples.

    Args:
        read: makes one, a flat dictionary of numbers.
        clock: seconds since 1970.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], clock: Callable[[], float] = time.time) -> None:
        self._read, self._clock = read, clock
        self.samples: deque[dict[str, Any]] = deque()

    def due(self, seconds: float = SECONDS) -> bool:
        """Whether the last sample is that old."""
        return not self.samples or self._clock() - self.samples[-1]["time"] >= seconds

    def sample(self) -> None:
        """Take one; drop those that are too old."""
        now = self._clock()
        while self.samples and now - self.samples[0]["time"] > KEPT_SECONDS:
            self.samples.popleft()
        self.samples.append({"time": now, **self._read()})

    def after(self, moment: float) -> list[dict[str, Any]]:
        """Samples from after a moment."""
        return [sample for sample in self.samples if sample["time"] > moment]
