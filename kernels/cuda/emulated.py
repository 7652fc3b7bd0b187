"""The CUDA kernels' own source on a CPU: slow, and strict about races, copies and what lanes do together.

Each shape is compiled by the C++ compiler (``CXX``, g++ by default) at first use, and kept in ``LEANKV_HOME`` or the
user's cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

from leankv_kernels.cuda.call import AttendArgs, KernelShape, attend_args, kernel_shape, merged, partial_of
from leankv_kernels.plan import Plan
from leankv_kernels.store import RecordStore

_SOURCE = Path(__file__).with_name("csrc")
_FORMAT = Path(__file__).resolve().parents[1] / "layout"
_FLAGS = ("-std=c++20", "-O2", "-g", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas")
_REPORT_BYTES = 4096

last_counts: dict[str, int] = {}
"""What the last call counted: operations by name, bytes copied, wavefronts of shared memory."""
seed = 0
"""Draws the order in which warps run; results must not depend on it."""


def _cache_folder() -> Path:
    home = (
        os.environ.get("LEANKV_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leankv-sglang"
    )
    return Path(home) / "cuda-emulated"


@cache
def _digest() -> str:
    files = sorted([*_SOURCE.rglob("*.cuh"), *_SOURCE.rglob("*.h"), *_SOURCE.rglob("*.cpp"), *_FORMAT.glob("*.h")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@cache
def library(shape: KernelShape) -> ctypes.CDLL:
    """The compiled kernel of a shape.

    Raises:
        ValueError: where it cannot be compiled; the sentence has the compiler's last line.
    """
    name = "-".join(map(str, map(int, shape)))
    target = _cache_folder() / _digest()
    file = target / f"{name}.so"
    if not file.exists():
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target, suffix=".so", delete=False) as out:
            pass
        includes = (f"-I{_FORMAT}", f"-DLEANKV_SHAPE={shape.arguments()}", str(_SOURCE / "emulator" / "library.cpp"))
        command = [os.environ.get("CXX", "g++"), *_FLAGS, *includes, "-o", out.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"the emulated cuda kernels do not compile ({last}): install g++ 10 or newer, or set CXX")
        os.replace(out.name, file)
    loaded = ctypes.CDLL(str(file))
    if loaded.leankv_args_bytes() != ctypes.sizeof(AttendArgs):
        raise ValueError(
            "the cuda kernels take other arguments than call.py gives: mend AttendArgs there or in shape.cuh"
        )
    return loaded


def attend_committed(
    q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_committed``; float32 out and LSE.

    Raises:
        ValueError: for a shape or dtype that the kernels are not written for.
    """
    q = q.contiguous()
    heads = store.layout.num_kv_heads
    run = library(kernel_shape(store.layout, q.shape[1] // heads))
    partial = partial_of(q, plan)
    args = attend_args(q, store, layer, plan, scale, rotation, partial)
    report = ctypes.create_string_buffer(_REPORT_BYTES)
    run.leankv_attend(ctypes.byref(args), args.splits, heads, len(q), seed, report, _REPORT_BYTES)
    last_counts.clear()
    last_counts.update(
        (name, int(n)) for name, n in (line.rsplit(" ", 1) for line in report.value.decode().splitlines())
    )
    return merged(partial, rotation)
