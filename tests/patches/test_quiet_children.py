"""Processes that a server starts leave SIGINT and SIGTERM to the one that starts them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing as mp, signal
from leankv_patches.quiet_children import spawn_quietly

def child(pipe):
    pipe.send(sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())))

if __name__ == "__main__":
    mp.set_start_method("spawn")
    here, there = mp.Pipe()
    process = mp.Process(target=child, args=(there,))
    spawn_quietly(process.start)
    print(here.recv(), sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    process.join()
"""


def test_children_do_not_hear_what_is_for_the_launcher(tmp_path: Path) -> None:
    """The first child of a process, with which multiprocessing starts its resource tracker."""
    script = tmp_path / "launcher.py"
    script.write_text(SCRIPT)
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"{[int(signal.SIGINT), int(signal.SIGTERM)]} []"
