"""Servers as child processes: each leads a session of its own and ends with whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import IO, Protocol

_PR_SET_PDEATHSIG = 1


class Process(Protocol):
    """What is needed of a running one, by ``subprocess.Popen`` or otherwise."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; raises ``subprocess.TimeoutExpired``."""


def start_module(module: str, args: Sequence[str], output: IO[bytes], env: Mapping[str, str]) -> Process:
    """``python -m`` in a session of its own; it is killed when the thread that calls this ends, however it does.

    Args:
        module: its name.
        args: its arguments.
        output: a file for all that it prints.
        env: joins this process's environment.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **env},
        start_new_session=True,
        preexec_fn=tied(),
    )


def stop(process: Process) -> None:
    """End the leader of a session and all its processes: first asked, then killed."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue


def tied() -> Callable[[], None]:
    """A ``preexec_fn`` for ``subprocess``: the process is killed when the thread that starts it ends, however it does.

    What holds a process of a session of its own is mostly a ``finally``, which a killed program never reaches.
    """
    starter, libc = os.getpid(), ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != starter:
            os._exit(1)

    return tie


def free_port() -> int:
    """A port of 127.0.0.1 that is free right now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
