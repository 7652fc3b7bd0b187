"""Page objects in main memory, up to a budget of bytes; what was asked for longest ago goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from leankv_sglang.offload.page_object import PageName
from leankv_sglang.offload.page_store import StoreCounts

ENTRY_BYTES = 400
"""What an object takes beside its bytes: its name, its entry, and Python's own."""


class HostStore:
    """See :class:`~leankv_sglang.offload.page_store.PageStore`.

    Args:
        budget: bytes it may take, names and entries included.
    """

    name = "host"

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.counts = StoreCounts()
        self._objects: OrderedDict[PageName, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, names: Sequence[PageName]) -> list[bool]:
        """Which of them are there."""
        return [name in self._objects for name in names]

    def get(self, names: Sequence[PageName]) -> list[bytes | None]:
        """The objects; they are now those asked for last."""
        with self._lock:
            found = [self._objects.get(name) for name in names]
            for name, data in zip(names, found, strict=True):
                if data is not None:
                    self._objects.move_to_end(name)
        hits = sum(data is not None for data in found)
        self.counts.hits += hits
        self.counts.misses += len(found) - hits
        return found

    def put(self, objects: Mapping[PageName, bytes]) -> None:
        """Keep objects, as far as the budget allows."""
        with self._lock:
            for name, data in objects.items():
                if len(data) + ENTRY_BYTES > self.budget:
                    continue
                self._forget(name)
                self._objects[name] = data
                self.counts.bytes += len(data) + ENTRY_BYTES
                self.counts.puts += 1
            while self.counts.bytes > self.budget:
                self._forget(next(iter(self._objects)))
                self.counts.dropped += 1
            self.counts.objects = len(self._objects)

    def remove(self, names: Sequence[PageName]) -> None:
        """Forget objects that are damaged."""
        with self._lock:
            for name in names:
                self.counts.damaged += self._forget(name)
            self.counts.objects = len(self._objects)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._objects.clear()
            self.counts.bytes = self.counts.objects = 0

    def close(self) -> None:
        """Nothing is under way."""

    def _forget(self, name: PageName) -> bool:
        data = self._objects.pop(name, None)
        if data is not None:
            self.counts.bytes -= len(data) + ENTRY_BYTES
        return data is not None
