"""``python -m bench.gpu.server.check``: all steps, in an environment in which sglang can be imported."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench.common.checkout  # noqa: F401
from bench.common.server import Start
from bench.common.table import print_table
from bench.gpu.check import machine
from bench.gpu.server.fleet import Fleet
from bench.gpu.server.options import add_options
from bench.gpu.server.run import Run
from bench.gpu.server.sizes import CPU, GPU
from bench.gpu.server.steps import Steps
from bench.gpu.server.verdict import verdicts


def speed_table(found: dict[str, Any], step: str) -> list[dict[str, Any]]:
    """Rows of a speed step for the terminal."""
    rows = []
    for row in found.get(step) or []:
        of = row.get("step_ms_of_stock", {}).get("median")
        rows.append(
            {
                "system": row["system"],
                "batch x context": f"{row['batch']} x {row['context']}",
                "ms a step": "{median:.2f} ({low:.2f}-{high:.2f})".format(**row["step_ms"]),
                "x stock": f"{of:.2f}" if of else "",
                "prefill tok/s": f"{row['prefill']['median']:,.0f}",
            }
        )
    return rows


def report(found: dict[str, Any]) -> None:
    """All tables."""
    print_table(speed_table(found, "speed"), f"Decode and prefill; {found['machine']}")
    print_table(speed_table(found, "llama_speed"), "Llama-3-8B's shape without weights, every token k4v2")
    print_table(found["verdicts"], found["machine"])


def check(args: argparse.Namespace, on_gpu: bool, start: Start | None = None) -> dict[str, Any]:
    """Everything; what was found. ``start`` says how servers begin."""
    out: Path = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "server.json"
    # What the set-up found, where it ran before this.
    found = json.loads(file.read_text()) if args.begin and file.exists() else {}
    found |= {"machine": machine(not on_gpu).replace("emulated on a CPU", "a CPU"), "sizes": "gpu" if on_gpu else "cpu"}
    with tempfile.TemporaryDirectory(prefix="leankv-server-") as work:
        fleet = Fleet(Path(work), start)
        run = Run(out, fleet, args.begin or time.time(), args.seconds, found)
        model = args.model.absolute() if args.model else None
        steps = Steps(run, fleet, GPU if on_gpu else CPU, on_gpu, args.source.absolute(), model)
        try:
            steps.prepare() if args.set_up else steps.all()
        finally:
            fleet.stop()
            found["verdicts"] = [] if args.set_up else verdicts(found)
            run.save()
    report(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m bench.gpu.server.check", description=__doc__)
    add_options(parser)
    parser.add_argument("--begin", type=float, help="seconds since 1970 from which time is counted")
    args = parser.parse_args(argv)
    found = check(args, torch.cuda.is_available() and not args.cpu)
    return 1 if any(row["answer"] == "no" for row in found["verdicts"]) else 0


if __name__ == "__main__":
    sys.exit(main())
