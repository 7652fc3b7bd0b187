"""A child process ends with its parent, also one that was still importing when the parent was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import left_after, runs

PARENT = """
import multiprocessing as mp, os, sys, time
from leankv_sglang.plugin.lifeline import hold_on

def child(seconds):
    time.sleep(seconds)
    hold_on()
    time.sleep(60)

if __name__ == "__main__":
    process = mp.get_context("spawn").Process(target=child, args=(float(sys.argv[1]),))
    process.start()
    hold_on()
    print(process.pid, flush=True)
    process.join()
"""


@pytest.mark.parametrize("importing", [0.0, 0.7])
def test_children_of_a_killed_parent_end(importing: float, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(importing)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    assert runs(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    try:
        assert not left_after(10, [child])
    finally:
        if runs(child):
            os.kill(child, signal.SIGKILL)
