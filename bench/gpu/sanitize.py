"""A few small jobs under compute-sanitizer: what they read and write, and whether threads race in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import time

from bench.gpu.runner import Runner, Stage

TOOLS = ("memcheck", "racecheck")
STAGES = ("attend", "own", "commit")
_REPORT = re.compile(r"=========\s+(ERROR SUMMARY|RACECHECK SUMMARY): (.*)")


def sanitize(runner: Runner, until: float, jobs: int = 2) -> list[dict[str, str]]:
    """One row a tool and stage, as far as time goes.

    torch's allocator is told to hand out what CUDA allocated, so that an access behind a tensor is one behind memory.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not on the path: left out", flush=True)
        return []
    rows = []
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    try:
        for name in TOOLS:
            for which in STAGES:
                if time.time() > until:
                    break
                said = runner.run(Stage(which), until, jobs, wrapper=(tool, "--tool", name))
                rows.append(_row(name, which, said))
                print(f"compute-sanitizer {name}, {which}: {rows[-1]['says']}", flush=True)
    finally:
        del os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"]
    return rows


def _row(tool: str, stage: str, said: list[str]) -> dict[str, str]:
    found = [m[2] for m in map(_REPORT.match, said) if m]
    first = next((line for line in said if "Invalid" in line or "Race" in line or "hazard" in line.lower()), "")
    return {"tool": tool, "stage": stage, "says": found[-1] if found else "no summary in time", "first": first}
