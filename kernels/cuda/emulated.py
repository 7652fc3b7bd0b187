"""The CUDA kernels' own source on a CPU: slow, and strict about races, copies and what lanes do together.

Each unit is compiled by the C++ compiler (``CXX``, g++ by default) at first use, and kept in ``LEANKV_HOME`` or the
user's cache.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache

import torch

from leankv_kernels.cuda.compiler import SHARED_BYTES
from leankv_kernels.cuda.unit import INCLUDES, Unit, cache_folder, check_arguments

_FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas")
_REPORT_BYTES = 4096


@cache
def library(unit: Unit, shared_bytes: int = SHARED_BYTES["90a"]) -> ctypes.CDLL:
    """The compiled kernels of a unit, for a GPU whose blocks have so much shared memory at most.

    Raises:
        ValueError: where it cannot be compiled; the sentence has the compiler's last line.
    """
    target = cache_folder("cuda-emulated")
    file = target / f"{unit.name}-{shared_bytes}.so"
    if not file.exists():
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target, suffix=".so", delete=False) as out:
            pass
        command = [
            os.environ.get("CXX", "g++"),
            *_FLAGS,
            *INCLUDES,
            f"-DLEANKV_SHARED_BYTES={shared_bytes}",
            "-x",
            "c++",
            "-",
            "-o",
            out.name,
        ]
        text = unit.text("emulator/library.cpp")
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            os.unlink(out.name)
            error = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
            raise ValueError(f"the emulated cuda kernels do not compile ({error}): install g++ 10 or newer, or set CXX")
        os.replace(out.name, file)
    return ctypes.CDLL(str(file))


class Emulator:
    """A launcher in this process, block after block.

    Attributes:
        seed: draws the order in which blocks and warps run; results must not depend on it.
        shared_bytes: of the GPU that is emulated; with less a block has fewer warps.
        counts: what the last launch counted: operations by name, bytes copied, wavefronts of shared memory.
    """

    def __init__(self) -> None:
        self.seed, self.shared_bytes = 0, SHARED_BYTES["90a"]
        self.counts: dict[str, int] = {}

    def launch(
        self, unit: Unit, kernel: str, grid: Sequence[int], args: ctypes.Structure, device: torch.device
    ) -> None:
        """See :class:`Launcher`; returns when the kernel has ended. A fault of the kernel ends the process."""
        run = library(unit, self.shared_bytes)
        check_arguments(kernel, args, (ctypes.c_int * 3).in_dll(run, f"{kernel}_facts")[2])
        getattr(run, kernel)(ctypes.byref(args), *grid, self.seed)
        report = ctypes.create_string_buffer(_REPORT_BYTES)
        run.leankv_report(report, _REPORT_BYTES)
        lines = report.value.decode().splitlines()
        self.counts = {name: int(n) for name, n in (line.rsplit(" ", 1) for line in lines)}


EMULATOR = Emulator()
"""The one behind the backend ``cuda-emulated``."""
