"""Processes in a session of their own that still end with whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def tied() -> Callable[[], None]:
    """A ``preexec_fn`` for ``subprocess``: the process is killed when the thread that starts it ends, however it does.

    What holds a process of a session of its own is mostly a ``finally``, which a killed bench never reaches.
    """
    starter, libc = os.getpid(), ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != starter:
            os._exit(1)

    return tie
