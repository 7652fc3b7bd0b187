"""What is compiled and launched: a unit is the kernels of one header at one shape; a launcher runs them somewhere."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

SOURCE = Path(os.environ.get("LEANKV_CUDA_SOURCE") or Path(__file__).with_name("csrc"))
"""The sources; the environment names others where faults are planted (``bench.cuda_faults``)."""
FORMAT = Path(__file__).resolve().parents[1] / "layout"
"""Where ``record_format.h`` lies."""
INCLUDES = (f"-I{SOURCE}", f"-I{FORMAT}")

MAX_GRID = 65535
"""Blocks of a grid in y and in z."""


class Unit(NamedTuple):
    """A header in ``csrc``, by its name without the suffix, and the template arguments of its kernels' shape."""

    source: str
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, source: str, shape: tuple[int, ...], v_head_dim: int) -> Unit:
        """One whose shape begins with the keys' head_dim; that of values is named where it is another."""
        return cls(source, (*shape, v_head_dim) if v_head_dim != shape[0] else tuple(shape))

    @property
    def name(self) -> str:
        """A name for files."""
        return "-".join([self.source, *(str(int(x)) for x in self.shape)])

    def text(self, template: str) -> str:
        """What a compiler is given, with ``INCLUDES``: a template of ``csrc``, ``unit.cu`` or the emulator's."""
        shape = [f"#define LEANKV_SHAPE {','.join(str(int(x)) for x in self.shape)}"] if self.shape else []
        lines = [*shape, f'#define LEANKV_UNIT "{self.source}.cuh"', f'#include "{template}"']
        return "\n".join(lines) + "\n"


class Launcher(Protocol):
    """Runs kernels: on a GPU (:mod:`leankv_kernels.cuda.driver`) or emulated (:mod:`leankv_kernels.cuda.emulated`)."""

    def launch(
        self, unit: Unit, kernel: str, grid: Sequence[int], args: ctypes.Structure, device: torch.device
    ) -> None:
        """Start a kernel of a unit on the device's current stream.

        Args:
            unit: compiled at first use, where it was not shipped.
            kernel: its name in the unit.
            grid: blocks in x, y and z; nothing is started where one of them is 0.
            args: what the kernel takes; its bytes are compared with what the kernel was compiled for.
            device: where its tensors live, which the caller keeps alive as torch does for any kernel.

        Raises:
            ValueError: for a unit that cannot be compiled or loaded; the sentence says what to install.
        """


@cache
def digest() -> str:
    """Of all sources: what was compiled from others is never loaded."""
    files = sorted([*SOURCE.rglob("*.cu*"), *SOURCE.rglob("*.h"), *SOURCE.rglob("*.cpp"), *FORMAT.glob("*.h")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def cache_folder(kind: str) -> Path:
    """Where units compiled at first use are kept, below ``LEANKV_HOME`` or the user's cache."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("LEANKV_HOME") or cache_home / "leankv-sglang")
    return home / kind / digest()


def check_arguments(kernel: str, args: ctypes.Structure, expected: int) -> None:
    """Raise :class:`ValueError` where Python and the kernel do not agree on the bytes of its arguments."""
    if ctypes.sizeof(args) != expected:
        raise ValueError(
            f"the cuda kernel {kernel} takes {expected} bytes of arguments, not {ctypes.sizeof(args)}: "
            f"mend {type(args).__name__} or its struct in csrc"
        )


def check_tokens(tokens: int) -> None:
    """Raise :class:`ValueError` for more tokens in a forward than a grid has places."""
    if tokens > MAX_GRID:
        raise ValueError(
            f"the cuda kernels take {MAX_GRID} tokens a forward, not {tokens}: lower --chunked-prefill-size"
        )
