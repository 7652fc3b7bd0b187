"""A server's child processes end with the process that started them, however that ends and whenever.

SGLang asks the kernel for it too, but only once a child has imported sglang: a launcher killed before is never missed.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1
_watching = threading.Event()


def hold_on() -> None:
    """In a child process that ``multiprocessing`` spawned: have it killed once its parent is gone. Elsewhere nothing.

    Call it as early as possible, and again when the process has begun its work: the kernel does not tell of a parent
    that was gone before the first call, the pipe to it does, which there is only then.
    """
    if "--multiprocessing-fork" in sys.orig_argv:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and not _watching.is_set():
        _watching.set()
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="leankv-lifeline", daemon=True).start()


def _end_with(sentinel: int) -> None:
    """The sentinel is a pipe whose other end the parent alone holds, whatever its threads do."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
