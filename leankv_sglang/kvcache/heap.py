"""Memory that the C library has free and the system does not: given back now and then.

Tensors of a forward come and go in many sizes. glibc keeps up to 32 MiB of each in its heap, among what stays, so a
server of long and short prompts on a CPU would take more and more memory that nobody holds.
"""

from __future__ import annotations

import ctypes
import time

SECONDS = 30.0
"""Between two times."""


class Heap:
    """The process's heap; where the C library is not glibc nothing is done."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._due = time.monotonic() + SECONDS
        self.trims = 0

    def trim_if_due(self) -> None:
        """Give back what is free, once in ``SECONDS``."""
        if self._trim is None or time.monotonic() < self._due:
            return
        self._trim(0)
        self.trims += 1
        self._due = time.monotonic() + SECONDS
