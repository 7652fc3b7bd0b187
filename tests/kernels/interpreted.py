"""The tests of the Triton backend in Triton's interpreter, as a process beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TEST = "test_the_triton_backend_in_the_interpreter"


class InterpretedRun:
    """Begins when it is made; ``stop`` it in the end."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "pytest", str(HERE), "-k", "[triton", "-p", "no:cacheprovider", "--color=no"]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=os.environ | {"TRITON_INTERPRET": "1"},
            cwd=HERE.parents[1],
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it printed."""
        code = self._process.wait()
        self._output.seek(0)
        return code, self._output.read()

    def stop(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._output.close()
