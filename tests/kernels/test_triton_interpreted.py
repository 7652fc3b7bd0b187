"""Runs the tests of the Triton backend in Triton's interpreter, where no GPU can run them.

In a process of its own: Triton reads TRITON_INTERPRET when it is imported, and other tests import it through sglang.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernelutil import INTERPRETED


@pytest.mark.skipif(INTERPRETED, reason="is running them")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
def test_the_triton_backend_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-k", "[triton", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--color=no"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all(line.endswith(": needs a GPU") for line in skipped), skipped
