"""``python -m leankv_kernels.cuda.build``: the cubins of the shipped units, on a machine without a GPU.

``--check`` compiles for the capabilities named and fails where a kernel spills registers or takes more shared memory
than its GPU has; nothing is kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

from leankv_kernels.cuda.compiler import CAPABILITIES, CompileError, Report, compile_unit
from leankv_kernels.cuda.driver import SHIPPED
from leankv_kernels.cuda.shipped import shipped_units
from leankv_kernels.cuda.unit import Unit, digest

ALLOWED_SPILLS = (28, 148)
"""Bytes, of attention kernels with one row tile and with more. They are put aside before the loop over pages and wanted
behind it, so that no page pays (``bench.cuda_budget`` counts what one costs), and a third block on a multiprocessor is
worth more: 4.2 TB/s predicted for K4V2 and a group of 8 beside 3.3."""
CHECKED = ("80", "90a")


def spills_allowed(unit: Unit) -> int:
    """Bytes that a unit's kernels may spill."""
    if unit.source != "attend":
        return 0
    _, group, queries = unit.shape[:3]
    return ALLOWED_SPILLS[group * queries > 4]


def compile_all(capabilities: Sequence[str], keep: bool) -> list[tuple[Unit, str, list[Report]]]:
    """Every shipped unit for every capability, and the PTX of the first; with ``keep`` where the driver finds them."""
    jobs = [(unit, capability, False) for unit in shipped_units() for capability in capabilities]
    if keep:
        jobs += [(unit, CAPABILITIES[0], True) for unit in shipped_units()]
    done = 0

    def run(job: tuple[Unit, str, bool]) -> tuple[Unit, str, list[Report]]:
        nonlocal done
        unit, capability, ptx = job
        image, reports = compile_unit(unit, capability, ptx)
        if keep:
            file = SHIPPED / digest() / capability / f"{unit.name}.{'ptx' if ptx else 'cubin'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
        done += 1
        if sys.stderr.isatty():
            print(f"\r{done}/{len(jobs)} {unit.name} {capability}".ljust(79)[:79], end="", file=sys.stderr, flush=True)
        return unit, capability, reports

    with ThreadPoolExecutor(cpu_count()) as pool:
        found = list(pool.map(run, jobs))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m leankv_kernels.cuda.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compile and judge, keep nothing")
    parser.add_argument(
        "--capabilities", nargs="+", choices=CAPABILITIES, help=f"default: all; with --check {', '.join(CHECKED)}"
    )
    args = parser.parse_args(argv)
    capabilities = args.capabilities or (CHECKED if args.check else CAPABILITIES)
    if not args.check and SHIPPED.exists():
        shutil.rmtree(SHIPPED)
    try:
        found = compile_all(capabilities, keep=not args.check)
    except CompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bad = [
        f"{unit.name} for {capability}: {report.kernel} spills {report.spill_bytes} bytes"
        for unit, capability, reports in found
        for report in reports
        if report.spill_bytes > spills_allowed(unit)
    ]
    print(f"{len(found)} units compiled for {', '.join(capabilities)}; {len(bad)} past their budget")
    for line in bad:
        print(f"error: {line}: fewer queries a block, or fewer blocks a multiprocessor", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
