"""Runs a program that a model wrote: a process of its own, with limits on time, memory, files and processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile

SECONDS = 10
MEMORY = 2 << 30
FILE_BYTES = 1 << 20
PASSED = 97
"""Exit status of a program that ran to its end; one that exits by itself has not."""
# Set by the process itself: a hook between fork and exec may deadlock beside torch's threads.
_RUN = f"""
import os, resource, sys
for what, most in (("CPU", {SECONDS}), ("AS", {MEMORY}), ("FSIZE", {FILE_BYTES}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
exec(compile(sys.stdin.read(), "answer", "exec"), {{"__name__": "answer"}})
os._exit({PASSED})
"""


def passes(program: str, seconds: int = SECONDS) -> bool:
    """Whether a Python program runs to its end, as a module, within its limits.

    It runs without this environment's packages and variables, in an empty folder, with no input and its output dropped.
    That bounds accidents; it is no defence against a program that means harm.
    """
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _RUN],
                input=program.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                timeout=seconds,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == PASSED
