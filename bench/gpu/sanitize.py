"""A few small jobs under compute-sanitizer: what they read and write, and whether threads race in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time

from bench.gpu.runner import Runner, Stage

TOOLS = ("memcheck", "racecheck")
STAGES = {
    "attend": ("attend_committed",),
    "own": ("attend_open", "begin_pages", "merge_states", "write_tokens", "tier_pages"),
    "commit": ("commit", "pages", "count_pages"),
}
"""With parts of their kernels' names, so that torch's own are left alone."""
STALL_SECONDS = 120.0
_REPORT = re.compile(r"=========\s+(ERROR SUMMARY|RACECHECK SUMMARY): (.*)")


def sanitize(runner: Runner, until: float, jobs: int = 2) -> list[dict[str, str]]:
    """One row a tool and stage, as far as time goes.

    torch's allocator is told to hand out what CUDA allocated, so that an access behind a tensor is one behind memory.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not on the path: left out", flush=True)
        return []
    can_choose = "kernel-regex" in subprocess.run([tool, "--help"], capture_output=True, text=True, check=False).stdout
    rows = []
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    try:
        for name in TOOLS:
            for which, kernels in STAGES.items():
                if time.time() > until:
                    break
                chosen = (word for kernel in kernels for word in ("--kernel-regex", f"kns={kernel}"))
                command = (tool, "--tool", name, *(chosen if can_choose else ()))
                said = runner.run(Stage(which, STALL_SECONDS), until, jobs, command, ("--small",))
                rows.append(_row(name, which, said))
                print(f"compute-sanitizer {name}, {which}: {rows[-1]['says']}", flush=True)
    finally:
        del os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"]
    return rows


def _row(tool: str, stage: str, said: list[str]) -> dict[str, str]:
    found = [m[2] for m in map(_REPORT.match, said) if m]
    first = next((line for line in said if "Invalid" in line or "Race" in line or "hazard" in line.lower()), "")
    return {"tool": tool, "stage": stage, "says": found[-1] if found else "no summary in time", "first": first}
