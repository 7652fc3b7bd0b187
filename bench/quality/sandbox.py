"""Runs a program that a model wrote: a process of its own, with limits on time, memory, files and processes."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache

from bench.quality import sandbox_supervisor
from bench.quality.sandbox_supervisor import SECONDS, TOKEN

_GRACE = 30
"""Seconds beside the program's own, for Python to start and processes to end, before the supervisor itself is ended."""


def passes(program: str, seconds: float = SECONDS) -> bool:
    """Whether a Python program runs to its end, as a module, within its limits.

    It runs without this environment's packages and variables, in an empty folder, with no input and its output dropped.
    A supervisor (:mod:`bench.quality.sandbox_supervisor`) counts its processes, since RLIMIT_NPROC does nothing for
    root and counts all of a user's processes for others, and ends every one of them before it says how it went. Where
    the system allows it they have namespaces of their own: no network, nobody else's processes, and nobody outlives
    the supervisor.

    No exit status and no output makes it pass. That bounds accidents; it is no defence against a program that knows
    this one and means harm, which can read and write whatever its user can.
    """
    token, text = secrets.token_bytes(TOKEN), program.encode(errors="replace")
    with tempfile.TemporaryDirectory(prefix="quality-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [*isolation(), sys.executable, "-I", "-S", sandbox_supervisor.__file__, str(seconds), str(len(text))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(text + token, timeout=seconds + _GRACE)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # The program ends with its supervisor, by the kernel's hand.
            if process.poll() != 0:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return said == token


@cache
def isolation() -> tuple[str, ...]:
    """The command that gives another its own processes, network and mounts; empty where the system has none, or does
    not allow it."""
    found = shutil.which("unshare")
    if found is None:
        return ()
    command = (found, "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc")
    tried = subprocess.run([*command, sys.executable, "-I", "-S", "-c", ""], capture_output=True, check=False)
    return () if tried.returncode else command
