"""Servers as child processes: each leads a session of its own, ends with whoever started it, and is waited for."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
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


class NotReady(RuntimeError):
    """A server that ended at its start, or took too long; says which of it, without a subject."""


def start_module(module: str, args: Sequence[str], output: IO[bytes], env: Mapping[str, str]) -> Process:
    """:func:`start` of ``python -m``."""
    return start([sys.executable, "-m", module, *args], output, env)


def start(command: Sequence[str], output: IO[bytes], env: Mapping[str, str] | None = None) -> Process:
    """A command in a session of its own; it is killed when the thread that calls this ends, however it does.

    Args:
        command: program and arguments.
        output: a file for all that it prints.
        env: joins this process's environment.
    """
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        start_new_session=True,
        preexec_fn=tied(),
    )


def wait_until_ready(url: str, process: Process, seconds: float, name: str) -> None:
    """Return once a token came out of a server; the time is shown on a terminal meanwhile.

    Args:
        url: its address.
        process: it.
        seconds: in which it has to.
        name: for what is shown.

    Raises:
        NotReady: when it ended, or did not.
    """
    import requests
    from tqdm import tqdm

    end = time.monotonic() + seconds
    with tqdm(desc=f"{name} starts", bar_format="{desc}: {elapsed}", leave=False, disable=None) as shown:
        while time.monotonic() < end:
            if (status := process.poll()) is not None:
                raise NotReady(f"ended with status {status} at its start")
            try:
                # /health_generate answers only once a token came out.
                if requests.get(url + "/health_generate", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            shown.refresh()
            time.sleep(0.3)
    raise NotReady(f"was not ready in {seconds:.0f} s")


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
