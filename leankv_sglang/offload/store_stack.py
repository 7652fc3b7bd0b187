"""Host memory before a store that outlives it: what is read from the store is kept in host memory too.

The scheduler asks what is there and has it fetched; threads read and write beside the forwards. What is in host memory
is known to be good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from leankv_sglang.offload.host import HostStore
from leankv_sglang.offload.page_object import ObjectError, PageName, PageObject
from leankv_sglang.offload.page_store import PageStore

logger = logging.getLogger(__name__)

READERS = 4
LONGEST_WAIT = 5.0
"""Seconds for which a request waits for pages that are being fetched, before it computes them itself."""
ASK_SECONDS = 0.2
"""For which the scheduler waits to hear what a store has; what is later is not there."""
MOST_WAITING = 512 << 20
"""Bytes on their way to a store; while there are more, what comes is left out."""


class StoreStack:
    """Where pages are that are not on the device.

    Args:
        host: main memory.
        store: what lies behind it, if anything.
        read: an object, or ``ObjectError`` for bytes that are another.
        on_read: told of the bytes that came from the store and the seconds that took.
    """

    def __init__(
        self,
        host: HostStore,
        store: PageStore | None,
        read: Callable[[PageName, bytes], PageObject],
        on_read: Callable[[int, float], None] = lambda _bytes, _seconds: None,
    ) -> None:
        self.host, self.store, self._read, self._on_read = host, store, read, on_read
        self._lock = threading.Lock()
        self._fetching: dict[PageName, Future[None]] = {}
        self._readers = ThreadPoolExecutor(READERS, "leankv-page-reader")
        self._writer = ThreadPoolExecutor(1, "leankv-page-writer")
        self._asking = ThreadPoolExecutor(1, "leankv-page-asking")
        self._asked: Future[list[bool]] | None = None
        self._waiting_bytes = 0
        self.left_out = 0
        """Objects that were not stored because too many were on their way."""

    def has(self, names: Sequence[PageName]) -> list[bool]:
        """Which objects are in either place."""
        found = self.host.has(names)
        if self.store is not None and not all(found):
            missing = [i for i, there in enumerate(found) if not there]
            for i, there in zip(missing, self.has_in(self.store, [names[i] for i in missing]), strict=True):
                found[i] = there
        return found

    def has_in(self, place: PageStore, names: Sequence[PageName]) -> list[bool]:
        """Which objects are in one of the places; none while it owes an answer: what hangs is waited for once."""
        if place is self.host:
            return self.host.has(names)
        if self._asked is None or self._asked.done():
            self._asked = self._asking.submit(place.has, names)
            with suppress(TimeoutError):
                return self._asked.result(ASK_SECONDS)
            place.counts.failures += 1
        return [False] * len(names)

    def fetch(self, names: Sequence[PageName]) -> None:
        """Begin to bring objects into host memory; does not wait."""
        if self.store is None:
            return
        there = self.host.has(names)
        with self._lock:
            new = [name for name, held in zip(names, there, strict=True) if not held and name not in self._fetching]
            # Several at a time, so that a place that answers many at once is asked for many.
            size = max(1, -(-len(new) // READERS))
            for part in (new[i : i + size] for i in range(0, len(new), size)):
                future = self._readers.submit(self._bring, part)
                self._fetching.update(dict.fromkeys(part, future))

    def _bring(self, names: Sequence[PageName]) -> None:
        assert self.store is not None
        try:
            good, bad = {}, []
            start = time.monotonic()
            found = self.store.get(names)
            if nbytes := sum(len(data) for data in found if data is not None):
                self._on_read(nbytes, time.monotonic() - start)
            for name, data in zip(names, found, strict=True):
                if data is None:
                    continue
                try:
                    self._read(name, data)
                    good[name] = data
                except ObjectError:
                    bad.append(name)
            if bad:
                self.store.remove(bad)
            self.host.put(good)
        finally:
            with self._lock:
                for name in names:
                    self._fetching.pop(name, None)

    def get(self, names: Sequence[PageName]) -> list[PageObject | None]:
        """Objects that are in host memory, or get there in time."""
        self.fetch(names)
        with self._lock:
            futures = {self._fetching[name] for name in names if name in self._fetching}
        if futures:
            wait(futures, LONGEST_WAIT)
        found = self.host.get(names)
        return [None if data is None else self._read(name, data) for name, data in zip(names, found, strict=True)]

    def write(self, make: Callable[[], Mapping[PageName, bytes]], nbytes: int, place: PageStore) -> None:
        """Have objects made and kept, on a thread.

        Args:
            make: makes them; may wait for the device.
            nbytes: about how many there are.
            place: host memory or the store.
        """
        with self._lock:
            if self._waiting_bytes > MOST_WAITING:
                self.left_out += 1
                return
            self._waiting_bytes += nbytes
        self._writer.submit(self._write, make, nbytes, place)

    def _write(self, make: Callable[[], Mapping[PageName, bytes]], nbytes: int, place: PageStore) -> None:
        try:
            place.put(make())
        except Exception:
            logger.exception("LeanKV could not keep pages outside the device; they count as misses.")
        finally:
            with self._lock:
                self._waiting_bytes -= nbytes

    def finish(self) -> None:
        """Wait until all that was to be written is."""
        self._writer.submit(lambda: None).result()

    def forget(self) -> None:
        """Empty host memory, once what is on its way has arrived."""
        self.finish()
        with self._lock:
            futures = set(self._fetching.values())
        wait(futures, LONGEST_WAIT)
        self.host.clear()

    def close(self) -> None:
        """Write what is to be written, and end."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._asking.shutdown(wait=False, cancel_futures=True)
        if self.store is not None:
            self.store.close()
