"""``bench/gpu/check.sh``: is the backend cuda right on this GPU, and how fast, the most telling first.

1. every op beside the reference on the main shapes, bits that must not change, CUDA graphs; 2. decode of Llama-3-8B at
8 x 8k, timed; 3. compute-sanitizer; 4. more of what is timed; 5. more shapes beside the reference, with what time is
left for them. ``--emulated`` does what a CPU can of it, on a tiny shape, with the kernels' own source emulated.
Results lie in the folder as they come: ``jobs.jsonl``, ``summary.json``; ``python -m bench.gpu.report FOLDER`` shows
them again and plots them.

Where minutes count, ``--compile`` makes the cubins beforehand, on any machine with nvcc, into ``out/leankv``, which
``check.sh`` uses where it finds it; for sources that have changed since they count for nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

import bench.common.checkout  # noqa: F401
from bench.common.table import print_table
from bench.gpu.jobs import main_jobs
from bench.gpu.report import plot, print_speed, speed_rows
from bench.gpu.runner import ROOT, Runner, Stage
from bench.gpu.sanitize import sanitize
from bench.gpu.speed import HEADLINE
from bench.gpu.units import compile_for
from leankv_kernels.cuda.compiler import capability_of

CHECKS = ("attend", "own", "commit", "sequence", "stable", "graph")
SPEED, SPEED_STALL, SPEED_GRACE = "speed", 150.0, 60.0
"""The stage that times; a job of it compiles Triton kernels, which takes long."""
SECONDS = 450.0
SHARES = {"main": 0.2, "headline": 0.42, "sanitizer": 0.58, "speed": 0.86, "wide": 0.97}
"""Where each part has to end, of the time."""


class Check:
    """One run over everything."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.begin, self.args, self.out = time.time(), args, Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        for old in ("jobs.jsonl", *(f"{name}.stderr" for name in (*CHECKS, SPEED))):
            (self.out / old).unlink(missing_ok=True)
        where = ["--device", "cpu", "--backend", "cuda-emulated"] if args.emulated else []
        self.runner = Runner(self.out, [*where, "--seed", str(args.seed)])
        self.stages = {name: Stage(name) for name in args.stages or CHECKS}
        if not args.emulated and (not args.stages or SPEED in args.stages):
            self.stages[SPEED] = Stage(SPEED, SPEED_STALL, SPEED_GRACE)
        self.sanitizer: list[dict[str, str]] = []
        self.machine = machine(args.emulated)

    def until(self, part: str) -> float:
        """When a part ends."""
        return self.begin + SHARES[part] * self.args.seconds

    def checks(self, names: list[str], until: float, count: int = sys.maxsize) -> None:
        """Stages beside each other; emulated one after the other."""
        if self.args.emulated:
            for name in names:
                self.runner.run(self.stages[name], until, count)
                self.save(f"{name} done")
            return
        threads = [threading.Thread(target=self.runner.run, args=(self.stages[name], until, count)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def save(self, what: str) -> None:
        """Where everything stands, on disk and in one line."""
        rows = [
            {"stage": s.name, "verdict": s.verdict, "passed": s.passed, "failed": s.failed}
            for s in self.stages.values()
        ]
        found = {"machine": self.machine, "seconds": time.time() - self.begin, "stages": rows}
        text = json.dumps(found | {"sanitizer": self.sanitizer, "options": vars(self.args)}, indent=1)
        (self.out / "summary.json").write_text(text + "\n")
        failed = {s.name: f" {s.failed} FAILED" if s.failed else "" for s in self.stages.values()}
        counts = ", ".join(f"{s.name} {s.passed} ok{failed[s.name]}" for s in self.stages.values())
        print(f"[{time.time() - self.begin:5.0f} s] {what}: {counts}", flush=True)

    def emulated(self) -> None:
        """What a CPU can do of it."""
        self.checks([*self.stages], self.begin + self.args.seconds, self.args.jobs or 2)
        for left in ("capture into CUDA graphs", "compute-sanitizer", "speed"):
            print(f"{left}: needs a GPU, left out", flush=True)

    def on_gpu(self) -> None:
        """All of it."""
        names = [name for name in self.stages if name in CHECKS]
        compiling = compile_ahead()
        self.checks(names, self.until("main"), self.args.jobs or main_jobs())
        self.save("main shapes")
        self.speed("headline", HEADLINE)
        if compiling:
            print("\n".join(compiling.communicate()[0].splitlines()[:3]), flush=True)
        self.sanitizer = sanitize(self.runner, self.until("sanitizer"))
        self.save("compute-sanitizer")
        self.speed("speed")
        self.checks(names, self.until("wide"))
        self.save("all shapes")

    def speed(self, part: str, count: int = sys.maxsize) -> None:
        """Timed alone, nothing else on the GPU."""
        if SPEED in self.stages:
            commit = self.stages.get("commit")
            options = ("--commit-by-reference",) if commit and commit.failed else ()
            for line in dict.fromkeys(self.runner.run(self.stages[SPEED], self.until(part), count, options=options)):
                print(line, flush=True)
            self.save(part)
            print_speed(speed_rows(self.out), f"Speed so far, cold; {self.machine}")

    def finish(self) -> int:
        """The tables, the plot, and whether all went well."""
        self.save("done")
        summary = json.loads((self.out / "summary.json").read_text())
        print_table(summary["stages"], self.machine)
        if not self.args.emulated:
            print_table(self.sanitizer, "compute-sanitizer")
            print_speed(speed_rows(self.out), "Speed, cold")
            if not plot(self.out, self.machine):
                print(f"no plot: python -m bench.gpu.report {self.out} makes one where matplotlib is installed")
        faults = any(row["says"][0] in "123456789" for row in self.sanitizer)
        if not any(stage.passed or stage.failed for stage in self.stages.values()):
            print("error: nothing ran; give it more --seconds, or other --stages", file=sys.stderr)
            return 2
        return 1 if faults or any(stage.failed for stage in self.stages.values()) else 0


def machine(emulated: bool) -> str:
    """What it runs on."""
    if emulated or not torch.cuda.is_available():
        return f"emulated on a CPU, torch {torch.__version__}"
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return f"{name}, compute capability {major}.{minor}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def compile_ahead() -> subprocess.Popen[str] | None:
    """A process that compiles what was neither shipped nor carried along, while the first checks run."""
    capability = capability_of(*torch.cuda.get_device_capability())
    if capability is None:
        print("no cubins for this GPU: its driver compiles PTX, at first use", flush=True)
        return None
    command = [sys.executable, "-m", "bench.gpu.units", capability]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu/check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emulated", action="store_true", help="on the CPU")
    parser.add_argument("--compile", action="store_true", help="here, for an H100 or H200: to be carried along")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything (default: {SECONDS:.0f})")
    parser.add_argument(
        "--out", default=os.environ.get("OUT") or str(ROOT / "out" / "gpu"), help="default: $OUT or out/gpu"
    )
    parser.add_argument("--stages", nargs="+", choices=(*CHECKS, SPEED), help="default: all")
    parser.add_argument("--jobs", type=int, help="of every check, at first (default: those of the main shapes)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.compile:
        return compile_for("90a")
    if not args.emulated and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: --emulated checks what a CPU can")
    check = Check(args)
    print(check.machine, flush=True)
    check.emulated() if args.emulated else check.on_gpu()
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
