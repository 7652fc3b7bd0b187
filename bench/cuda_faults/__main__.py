"""``python -m bench.cuda_faults``: are faults planted in the CUDA kernels noticed without a GPU?

Each fault is one change of the sources, in a copy; then the emulator's tests of that op run on it. A fault that they do
not notice is a hole in the tests.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.processes import output_of
from bench.common.table import print_table, write_json
from bench.cuda_faults.faults import FAULTS, Fault, plant

TESTS = tuple(
    f"tests/kernels/test_{name}.py"
    for name in ("cuda_emulated", "cuda_layers", "cuda_work", "capped", "out_of_range", "shrink", "packing")
)


def run_tests(source: Path, home: Path, expression: str) -> tuple[int, str]:
    """Exit code and last lines of the emulator's tests on some sources."""
    # Not captured: a check of the emulator ends the process.
    command = [sys.executable, "-m", "pytest", *TESTS, "-x", "-q", "-s", "-p", "no:cacheprovider", "-k", expression]
    return output_of(command, {"LEANKV_CUDA_SOURCE": str(source), "LEANKV_HOME": str(home)}, errors=True)


def how_noticed(code: int, output: str) -> str:
    """By a check of the emulator, by a comparison, or not at all."""
    if code == 0:
        return "MISSED"
    emulator = next((line for line in output.splitlines() if line.startswith("emulator:")), "")
    if emulator:
        return emulator.split("): ")[-1][:60]
    if code < 0:
        return "a crash"
    return "a wrong result" if code == 1 and "do not compile" not in output else "NOT RUN"


def choose(part: str | None, per_file: int | None) -> list[Fault]:
    """Faults whose name has a part, of each file the first so many."""
    counts: Counter[str] = Counter()
    chosen = []
    for fault in FAULTS:
        if part and part not in fault.name:
            continue
        counts[fault.file] += 1
        if per_file is None or counts[fault.file] <= per_file:
            chosen.append(fault)
    return chosen


def command_line() -> Parser:
    """The flags."""
    files = len({fault.file for fault in FAULTS})
    parser = Parser(
        "cuda_faults",
        __doc__,
        quick=f"one fault of each of {files} source files; under three minutes",
        sizes={"per_file": 1},
    )
    parser.add_argument("--only", metavar="TEXT", help="faults whose name has it")
    parser.add_argument("--per-file", type=int, metavar="N", help="at most so many of a source file (default: all)")
    return parser


def main() -> int:
    """Command line; 1 where a fault was not noticed, 2 where none is chosen."""
    args = command_line().parse_args()
    chosen = choose(args.only, args.per_file)
    if not chosen:
        print(f"error: --only {args.only} is in no fault's name: {', '.join(f.name for f in FAULTS)}.", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, fault in enumerate(bar := tqdm(chosen, unit="fault")):
            plant(fault, folder / str(i))
            noticed = how_noticed(*run_tests(folder / str(i), folder / "home", fault.tests))
            rows.append({"fault": fault.name, "file": fault.file, "noticed by": noticed})
            bar.write(f"{fault.name}: {noticed}", file=sys.stderr)
            shutil.rmtree(folder / "home", ignore_errors=True)
    print_table(rows)
    write_json(args.json, rows)
    missed = [row["fault"] for row in rows if row["noticed by"] in ("MISSED", "NOT RUN")]
    print(f"{len(rows) - len(missed)} of {len(rows)} noticed" + (f"; not: {', '.join(missed)}" if missed else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    run(main)
