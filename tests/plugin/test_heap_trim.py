"""What is freed goes back to the system, though it lies among what is in use."""

from __future__ import annotations

import subprocess
import sys

HOLES = """
import time
from leankv_sglang.plugin.heap_trim import start_trimming

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

blocks = [bytes(bytearray(b"x") * 100_000) for _ in range(2000)]
full = resident()
blocks = blocks[::50]
holes = resident()
stopped = start_trimming(0.05)
until = time.monotonic() + 20
while resident() > holes - 100 and time.monotonic() < until:
    time.sleep(0.05)
stopped.set()
print(full, holes, resident(), all(block == b"x" * 100_000 for block in blocks))
"""


def test_a_heap_full_of_holes_shrinks() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=120, check=True)
    full, holes, trimmed, kept = done.stdout.split()
    assert int(holes) > int(full) - 20  # the heap keeps them by itself
    assert int(trimmed) < int(full) - 100
    assert kept == "True"
