"""Units to cubins by nvcc, else by NVRTC, without a GPU: at build time for shipped shapes, at first use for others."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from leankv_kernels.cuda.nvrtc import NVRTC_ENV, NvrtcError, compile_source, find_nvrtc, toolkits
from leankv_kernels.cuda.unit import INCLUDES, Unit

CAPABILITIES = ("80", "86", "89", "90a", "100a", "120a")
"""Compute capabilities that cubins are shipped for; others get the PTX of the first."""
SHARED_BYTES = {"80": 166912, "86": 101376, "89": 101376, "90a": 232448, "100a": 232448, "120a": 101376}
"""The most dynamic shared memory that a block may have there."""
NVCC_ENV = "LEANKV_NVCC"
_NVCC_FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v")
# It optimizes anyway. Functions that are not marked, constexpr ones say, are the device's.
_NVRTC_FLAGS = ("--std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v")


@dataclass(frozen=True)
class Report:
    """What the assembler says of one kernel of a unit."""

    kernel: str
    registers: int
    spill_bytes: int
    stack_bytes: int


class CompileError(ValueError):
    """There is no compiler, or it refused a unit; the sentence says what to do."""


@cache
def find_nvcc() -> str | None:
    """nvcc: what ``LEANKV_NVCC`` names, of PyPI's package nvidia-cuda-nvcc, of CUDA_HOME, or on the path.

    Raises:
        CompileError: where ``LEANKV_NVCC`` names no program.
    """
    if named := os.environ.get(NVCC_ENV):
        if not shutil.which(named):
            raise CompileError(f"{NVCC_ENV} names {named}, which cannot be run: name an nvcc, or unset it")
        return named
    found = next((str(home / "bin" / "nvcc") for home in toolkits() if (home / "bin" / "nvcc").exists()), None)
    return found or shutil.which("nvcc")


def has_compiler() -> bool:
    """Whether units can be compiled here."""
    return find_nvcc() is not None or find_nvrtc() is not None


def compile_unit(unit: Unit, capability: str, ptx: bool = False) -> tuple[bytes, list[Report]]:
    """The cubin of a unit for a compute capability such as ``90a``, or its PTX; and what the assembler reports.

    Raises:
        CompileError: without nvcc and NVRTC, or where the compiler fails.
    """
    options = [*INCLUDES, f"-DLEANKV_SHARED_BYTES={SHARED_BYTES[capability]}"]
    if nvcc := find_nvcc():
        return _by_nvcc(nvcc, unit, capability, options, ptx)
    if library := find_nvrtc():
        return _by_nvrtc(library, unit, capability, options, ptx)
    raise CompileError(
        f"the cuda kernels of {unit.name} are not shipped for compute capability {capability} and there is neither "
        f"nvcc nor NVRTC to compile them: pip install nvidia-cuda-nvrtc, set {NVCC_ENV}, {NVRTC_ENV} or CUDA_HOME, "
        "or use another backend"
    )


def _by_nvcc(nvcc: str, unit: Unit, capability: str, options: list[str], ptx: bool) -> tuple[bytes, list[Report]]:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source.cu", Path(folder) / "image"
        source.write_text(unit.text("unit.cu"))
        target = [f"-arch=compute_{capability}", "-ptx"] if ptx else [f"-arch=sm_{capability}", "-cubin"]
        command = [nvcc, *_NVCC_FLAGS, *options, *target, str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line or "fatal" in line]
            raise CompileError(
                f"nvcc ({nvcc}) does not compile the cuda kernels of {unit.name}: {(lines or ['no message'])[0]}; "
                f"name a newer one by {NVCC_ENV}, or use --leankv-kernels triton"
            )
        return out.read_bytes(), parse_reports(done.stderr + done.stdout)


def _by_nvrtc(
    library: ctypes.CDLL, unit: Unit, capability: str, options: list[str], ptx: bool
) -> tuple[bytes, list[Report]]:
    target = f"--gpu-architecture={'compute' if ptx else 'sm'}_{capability}"
    try:
        image, log = compile_source(library, unit.text("unit.cu"), [*_NVRTC_FLAGS, *options, target], ptx)
    except NvrtcError as error:
        raise CompileError(
            f"NVRTC ({library._name}) does not compile the cuda kernels of {unit.name}: {error}"
        ) from error
    return image, parse_reports(log)


def parse_reports(text: str) -> list[Report]:
    """From what ``ptxas -v`` prints."""
    found = []
    for part in re.split(r"Function properties for ", text)[1:]:
        name = part.split()[0]
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        if stack and used:
            found.append(Report(name, int(used[1]), max(int(stack[2]), int(stack[3])), int(stack[1])))
    return found


def shared_bytes_of(capability: str | None) -> int:
    """The most dynamic shared memory of a block; None is a GPU that takes the PTX, compiled for the first of all."""
    return SHARED_BYTES[capability or CAPABILITIES[0]]


def capability_of(major: int, minor: int) -> str | None:
    """The shipped compute capability whose cubins a GPU runs; None for those that take the PTX."""
    if major == 8:
        return "89" if minor >= 9 else "86" if minor >= 6 else "80"
    return {9: "90a", 10: "100a", 12: "120a"}.get(major)
