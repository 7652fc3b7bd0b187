"""Copies that arrive when a test says so, as those from a GPU do."""

from __future__ import annotations

from torch import Tensor

from leankv_sglang.kvcache.transfer import Arrival


class LateEvent:
    """Passes when it is waited for, or told to."""

    def __init__(self) -> None:
        self.passed, self.waited = False, False

    def query(self) -> bool:
        """Whether it has passed."""
        return self.passed

    def synchronize(self) -> None:
        """Have it pass."""
        self.waited |= not self.passed
        self.passed = True


class LateCopies:
    """Call it with what is to be copied; ``events`` are of the copies so far, in order."""

    def __init__(self) -> None:
        self.events: list[LateEvent] = []

    def __call__(self, values: Tensor) -> Arrival:
        self.events.append(LateEvent())
        return Arrival(values.clone(), self.events[-1])

    def arrive(self) -> None:
        """All copies so far are there."""
        for event in self.events:
            event.passed = True

    @property
    def waits(self) -> int:
        """Copies that were waited for."""
        return sum(event.waited for event in self.events)
