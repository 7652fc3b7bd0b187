"""Child processes of benches: each leads a session of its own, and all end with the bench, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from leankv_sglang.processes import Process, stop, tied

_held: list[Process] = []


@contextmanager
def held(process: Process) -> Iterator[None]:
    """End the leader of a session, and all in it, behind the block, or at once when the bench is stopped."""
    _held.append(process)
    try:
        yield
    finally:
        stop(process)
        _held.remove(process)


def kill_held() -> None:
    """Kill all that is held: threads that wait for an answer are then free to end."""
    for process in list(_held):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def output_of(command: Sequence[str], env: dict[str, str], errors: bool = False) -> tuple[int, str]:
    """Run a command to its end: exit code, and what it printed.

    Args:
        command: program and arguments.
        env: joins this process's environment.
        errors: what it says on stderr too; otherwise that is shown.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors else None,
        env={**os.environ, **env},
        text=True,
        start_new_session=True,
        preexec_fn=tied(),
    )
    with held(process):
        text, _ = process.communicate()
    return process.returncode, text
