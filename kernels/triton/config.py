"""How the Triton kernels are cut and launched: one table, and what differs under the interpreter.

Results must not depend on how a query reached a kernel, so everything that orders a sum is fixed by the model's shape
alone: rows of a tile, tokens of a step, pages of a split. Warps and stages order no sum and may be tuned.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on tensors in main memory; decided when triton is imported."""
SPLIT_PAGES = 8
"""Pages of a split, counted from the start of the sequence."""
TUNE_ENV = "LEANKV_TRITON_TUNE"
"""Set to 1: time warps and stages on first use of a shape, instead of taking them from the table."""


class Launch(NamedTuple):
    """Tile and launch of a kernel."""

    rows: int
    tokens: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """What a launch takes besides its arguments. Products and sums are rounded as written, for the same bits in
        every specialisation of a kernel; ``tl.fma`` is used where one rounding is meant.
        """
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}


# (largest padded head_dim, most query heads per KV head) -> launch; the first that fits is taken. A tile of R rows
# takes 2 R rows of a matrix product, for queries and weights come in two fp16 halves. Prefill has the tile of decode: a
# product of another size may round in another order.
_COMMITTED = {
    (64, 8): Launch(8, 64, 1, 1),
    (64, 1 << 30): Launch(16, 64, 2, 1),
    (128, 8): Launch(8, 64, 2, 1),
    (128, 1 << 30): Launch(16, 64, 4, 1),
    (256, 8): Launch(8, 64, 4, 1),
    (256, 1 << 30): Launch(16, 64, 8, 1),
    (512, 8): Launch(8, 32, 8, 1),
    (512, 1 << 30): Launch(16, 32, 8, 1),
}


def committed_launch(pad: int, group: int) -> Launch:
    """For attention over committed pages."""
    return next(launch for (dim, most), launch in _COMMITTED.items() if pad <= dim and group <= most)


def open_launch(pad: int) -> Launch:
    """For attention inside open pages, where row sums follow the tile's layout: one per head_dim, never tuned."""
    return Launch(16, 64 if pad <= 128 else 32, 4, 2) if pad <= 256 else Launch(16, 32, 8, 1)


ROWS = Launch(8, 0, 4, 1)
"""For kernels that work row by row."""


def launch(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Starts a kernel. Every launch goes through here, where ``bench.kernels.triton_aot`` sees what to compile."""
    kernel[grid](*args, **options)


def tuned(kernel: Any, key: list[str]) -> Callable[[Launch], tuple[Any, dict[str, Any]]]:
    """From the table's launch to a kernel and its options; timed per ``key`` where the environment says so."""
    if INTERPRETED or os.environ.get(TUNE_ENV) != "1":
        return lambda launch: (kernel, launch.options)
    options = [triton.Config({}, num_warps=w, num_stages=s) for w in (1, 2, 4, 8) for s in (1, 2, 3)]
    timed = triton.autotune(configs=options, key=key)(kernel)
    return lambda launch: (timed, {"enable_fp_fusion": False})
