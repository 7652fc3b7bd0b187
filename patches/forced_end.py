"""The end of a server that does not end by itself: a thread that hears of signals, and in the end kills what is left.

Reason: SGLang 0.5.23 and uvicorn end a server in their event loop, which waits for schedulers, connections and tasks,
some of them without limit and without listening meanwhile. A thread goes on in any case.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

END_SECONDS = 18.0
"""What a server gets to end once its requests are answered: SGLang gives its schedulers 15 s of that."""
HURRY_SECONDS = 2.0
"""What it gets after a second signal; after a third, nothing."""
ONE_SIGNAL = 1.0
"""Signals that come closer are one: ``timeout`` and some runners send them to a process and to its group."""
_LAST_SECONDS = 3.0
"""What a process gets to leave by itself once nothing holds it any more."""

logger = logging.getLogger(__name__)


class ForcedEnd:
    """Begins with the first signal that it is told of."""

    def __init__(self, patience: Callable[[int], float], hurry: Callable[[], None], end: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            patience: the seconds that a server may take in all, from the first signal.
            hurry: called once a second signal asks for that.
            end: called when time is up; the last thing that happens.
        """
        self._patience, self._hurry, self._end = patience, hurry, end
        # Of all queues and events the only one that a signal handler may use, whatever it interrupted.
        self._told: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="forced-end", daemon=True).start()

    def listen(self, number: signal.Signals) -> None:
        """Hear of a signal, beside whoever handles it now; in the main thread."""
        usual = signal.getsignal(number)

        def handle(signum: int, frame: FrameType | None) -> None:
            self._told.put(signum)
            if callable(usual):
                usual(signum, frame)

        signal.signal(number, handle)

    def tell(self, signum: int) -> None:
        """As if a signal had come; 0 for requests that have all been answered."""
        self._told.put(signum)

    def _run(self) -> None:
        signum = 0
        while not signum:
            signum = self._told.get()
        heard, hurried = time.monotonic(), False
        deadline = heard + self._patience(signum)
        while (left := deadline - time.monotonic()) > 0:
            try:
                signum = self._told.get(timeout=left)
            except queue.Empty:
                break
            now = time.monotonic()
            if not signum:
                deadline = min(deadline, now + END_SECONDS)
            elif now > heard + ONE_SIGNAL:
                if hurried:
                    break
                heard, hurried = now, True
                deadline = min(deadline, now + HURRY_SECONDS)
                self._hurry()
        self._end()


def end_process(manager: Any, server: Any, exit_code: Callable[[], int]) -> None:
    """Kill all children, let this process end as it does without them, and end it if it does not.

    Args:
        manager: SGLang's TokenizerManager.
        server: uvicorn's.
        exit_code: called where the process does not end by itself.
    """
    from sglang.srt.utils import kill_process_tree

    logger.warning("The server has not ended by itself: its processes are killed.")
    # Their end is no crash.
    if (watchdog := getattr(manager, "_subprocess_watchdog", None)) is not None:
        watchdog.stop()
    with suppress(Exception):
        kill_process_tree(os.getpid(), include_parent=False, wait_timeout=_LAST_SECONDS)
    server.config.timeout_graceful_shutdown = 0
    server.should_exit = True
    time.sleep(_LAST_SECONDS)
    os._exit(exit_code())
