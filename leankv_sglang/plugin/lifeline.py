"""A server's child processes end with the process that started them, however that ends and whenever.

SGLang asks the kernel for it, but only once a child has imported sglang: a launcher killed before is never missed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_watched = threading.Event()


def hold_on() -> None:
    """In a child process that ``multiprocessing`` spawned: from now on it is killed when its parent is gone, also if
    that is so already. Anywhere else, and a second time, nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None or _watched.is_set():
        return
    _watched.set()
    threading.Thread(target=_end_with, args=(parent.sentinel,), name="leankv-lifeline", daemon=True).start()


def _end_with(sentinel: int) -> None:
    """The sentinel is a pipe whose other end the parent alone holds, so no thread of it matters."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
