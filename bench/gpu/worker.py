"""``python -m bench.gpu.worker STAGE``: runs a stage's jobs and prints a line of JSON before and after each.

A process of its own, because a fault of a kernel leaves a GPU's context unusable, and emulated ends the process. Where
a job failed that way the exit status says so, and whoever started this goes on behind it (bench.gpu.runner).
``--only`` runs one job again and shows where it fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

import bench.common.checkout  # noqa: F401
from bench.gpu.correct import attend_jobs, commit_jobs, own_jobs, sequence_jobs
from bench.gpu.graph import graph_jobs
from bench.gpu.jobs import Bench, Job
from bench.gpu.speed import speed_jobs
from bench.gpu.stable import stable_jobs
from leankv_kernels import get_ops

STAGES: dict[str, Callable[[Bench], Iterator[Job]]] = {
    "attend": attend_jobs,
    "own": own_jobs,
    "commit": commit_jobs,
    "sequence": sequence_jobs,
    "stable": stable_jobs,
    "graph": graph_jobs,
    "speed": speed_jobs,
}
FAILURES_OF_A_KEY, FAILURES = 2, 12
BROKEN = 3
"""Exit status after a fault behind which the device is not usable."""


def say(**what: Any) -> None:
    """A line for whoever started this."""
    print(json.dumps(what), flush=True)


def reason(error: BaseException) -> str:
    """An error in one line: what it says, or the assertion that failed, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    last = [f for f in frames if f"{os.sep}site-packages{os.sep}" not in f.filename][-1]
    text = " ".join(str(error).split()) or (last.line or "")
    return f"{type(error).__name__}: {text[:400]} ({os.path.basename(last.filename)}:{last.lineno})"


def device_works(bench: Bench) -> bool:
    """Whether the GPU still answers."""
    try:
        if bench.on_gpu:
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def run(job: Job, bench: Bench) -> dict[str, Any]:
    """What to say of a job."""
    begin = time.perf_counter()
    try:
        rows = job.run()
        if bench.on_gpu:
            torch.cuda.synchronize()
    except Exception as error:
        return {"ok": False, "why": reason(error), "seconds": time.perf_counter() - begin}
    return {"ok": True, "seconds": time.perf_counter() - begin, "found": rows}


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.worker", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="sizes as emulated")
    parser.add_argument("--commit-by-reference", action="store_true", help="to time the rest where commit fails")
    parser.add_argument("--first", type=int, default=0, help="the first job's number")
    parser.add_argument("--count", type=int, default=sys.maxsize, help="jobs at most")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds since 1970 at which no job begins")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this job alone, with its traceback")
    parser.add_argument("--without", nargs="*", default=[], help="keys that are left out")
    args = parser.parse_args(argv)
    torch.set_num_threads(max(1, min(3, (os.cpu_count() or 1) // 5)))
    ops, reference = (get_ops(args.device, name) for name in (args.backend, "reference"))
    if args.commit_by_reference:
        ops = ops._replace(commit_pages=reference.commit_pages)
    bench = Bench(ops, reference, args.device, args.seed, args.small)
    failed: Counter[str] = Counter(dict.fromkeys(args.without, FAILURES_OF_A_KEY))
    say(ready=bench.ops.describe())
    for number, job in enumerate(STAGES[args.stage](bench)):
        if args.only is not None:
            if number == args.only:
                job.run()
                say(job=number, name=job.name, ok=True)
                return 0
            continue
        if number < args.first or failed[job.key] >= FAILURES_OF_A_KEY:
            continue
        if number >= args.first + args.count or time.time() > args.until:
            break
        about = {"job": number, "key": job.key, "name": job.name}
        say(**about, begun=True)
        done = run(job, bench)
        say(**about, **done)
        failed[job.key] += not done["ok"]
        if not device_works(bench):
            os._exit(BROKEN)
        if sum(failed.values()) - FAILURES_OF_A_KEY * len(args.without) >= FAILURES:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
