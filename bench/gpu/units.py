"""``python -m bench.gpu.units 90a``: compiles what the checks will launch, in their order, while they begin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import bench.common.checkout  # noqa: F401
from bench.gpu.shapes import COMMON, LLAMA, MAIN, OTHERS, SMOL
from leankv_kernels.cuda.compiler import CompileError
from leankv_kernels.cuda.driver import image_of
from leankv_kernels.cuda.unit import Unit


def units() -> Iterator[Unit]:
    """All, once each."""
    singles = [s._replace(tiers=tiers) for s in (LLAMA, SMOL) for tiers in ("k4v2,k4v2", "k8v4,k8v4")]
    found = [*COMMON, *(unit for shape in (*MAIN, *singles, *OTHERS) for unit in shape.units())]
    return iter(dict.fromkeys(found))


def compile_for(capability: str) -> int:
    """All for a compute capability, into the cache of ``LEANKV_HOME``; what fails is printed."""

    def compiled(unit: Unit) -> str | None:
        try:
            image_of(unit, capability)
        except CompileError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 3)) as pool:
        errors = [error for error in pool.map(compiled, units()) if error]
    for error in errors:
        print(error, flush=True)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(compile_for(sys.argv[1]))
