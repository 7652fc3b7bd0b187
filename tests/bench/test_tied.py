"""What a bench starts ends with it, even when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import left_after, runs

BENCH = """
import time
from leankv_sglang.processes import start_module
with open("/dev/null", "wb") as output:
    print(start_module("http.server", ["0", "--bind", "127.0.0.1"], output, {}).pid, flush=True)
time.sleep(60)
"""


def test_a_killed_bench_takes_its_server_along() -> None:
    root = Path(__file__).parents[2]
    bench = subprocess.Popen([sys.executable, "-c", BENCH], cwd=root, stdout=subprocess.PIPE, text=True)
    assert bench.stdout
    server = int(bench.stdout.readline())
    try:
        assert runs(server)
        bench.send_signal(signal.SIGKILL)
        bench.wait(10)
        assert not left_after(5, [server])
    finally:
        if runs(server):
            os.kill(server, signal.SIGKILL)
