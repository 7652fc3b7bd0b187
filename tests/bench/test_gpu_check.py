"""The check for a machine with a GPU (bench/gpu): emulated, and how it goes on behind what breaks."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from bench.gpu.check import CHECKS, main
from bench.gpu.jobs import Bench
from bench.gpu.report import print_speed
from bench.gpu.runner import Runner, Stage
from bench.gpu.speed import speed_jobs
from bench.gpu.units import units
from bench.gpu.worker import BROKEN, STAGES
from leankv_kernels import get_ops

SAYS = "import json, os, sys, time; say = lambda **what: print(json.dumps(what), flush=True); first = "
FIRST = "int(sys.argv[sys.argv.index('--first') + 1])\n"
JOBS = """
for number in range(first, 4):
    about = {'job': number, 'key': f'shape {number}', 'name': f'job {number}'}
    say(**about, begun=True)
    if number == 1:
        FAULT
    print('========= words of a wrapper')
    say(**about, ok=number != 2, why='because', found={'rows': [{'n': number}]})
"""


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is compiled by g++")


def emulated(out: Path, jobs: int, *stages: str) -> dict[str, tuple[str, int]]:
    """Verdicts, and how many jobs passed."""
    assert main(["--emulated", "--stages", *stages, "--jobs", str(jobs), "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    lines = [json.loads(line) for line in (out / "jobs.jsonl").read_text().splitlines()]
    assert all(line["ok"] for line in lines)
    return {row["stage"]: (row["verdict"], row["passed"]) for row in summary["stages"]}


@needs_compiler
def test_the_check_runs_emulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert emulated(tmp_path / "out", 1, "attend") == {"attend": ("ok", 1)}
    said = capsys.readouterr().out
    assert "FAILED" not in said
    assert "speed: needs a GPU, left out" in said


@needs_compiler
@pytest.mark.slow
def test_every_check_runs_emulated(tmp_path: Path) -> None:
    assert emulated(tmp_path, 2, *CHECKS) == dict.fromkeys(CHECKS, ("ok", 2))


def fake(fault: str) -> tuple[str, ...]:
    """A wrapper that plays the worker itself."""
    return (sys.executable, "-c", SAYS + FIRST + JOBS.replace("FAULT", fault))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (f"say(**about, ok=False, why='a fault of the kernel'); os._exit({BROKEN})", "a fault of the kernel"),
        ("print('aborted', file=sys.stderr); os.abort()", "ends its process with -6: aborted"),
        ("time.sleep(60)", "hangs for 2 s"),
    ],
)
def test_what_breaks_is_told_and_the_next_job_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, why: str
) -> None:
    stage = Stage("attend", stall=2.0)
    printed = Runner(tmp_path, []).run(stage, time.time() + 50, 4, fake(fault))
    assert (stage.next, stage.passed, stage.failed) == (4, 2, 2)
    assert stage.found == [{"rows": [{"n": 0}]}, {"rows": [{"n": 2}]}, {"rows": [{"n": 3}]}]
    assert "========= words of a wrapper" in printed
    said = capsys.readouterr().out
    assert f"FAILED attend: job 1: {why} | again: python -m bench.gpu.worker attend  --only 1" in said
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [(line["job"], line["ok"]) for line in lines] == [(0, True), (1, False), (2, False), (3, True)]


def test_a_worker_that_never_comes_up_ends_its_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage("own")
    Runner(tmp_path, []).run(stage, time.time() + 50, 4, (sys.executable, "-c", "raise SystemExit('no driver')"))
    assert stage.failed == 1
    assert "FAILED own: the worker: no driver" in capsys.readouterr().out


def test_time_that_is_up_ends_a_job_without_a_verdict(tmp_path: Path) -> None:
    stage = Stage("own", stall=50.0, grace=0.5)
    Runner(tmp_path, []).run(stage, time.time() + 1.0, 4, fake("time.sleep(60)"))
    assert (stage.passed, stage.failed) == (1, 0)


def test_every_stage_begins_with_the_main_model_and_every_unit_can_be_compiled() -> None:
    bench = Bench(get_ops("cpu", "cuda-emulated"), get_ops("cpu", "reference"), "cuda", 0)
    for name in CHECKS:
        keys = [job.key for job, _ in zip(STAGES[name](bench), range(3), strict=False)]
        assert any("Llama-3-8B" in key for key in keys)
    assert next(speed_jobs(bench)).name == "Llama-3-8B 8 x 8k"
    names = [unit.name for unit in units()]
    assert len(names) == len(set(names)) > 50


def test_rows_of_speed_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    what = {"op": "attend_committed", "shape": "Llama-3-8B", "tiers": "k4v2", "batch": 8, "context": 8192}
    took = {"ms": 0.03, "ms_low": 0.029, "ms_high": 0.031, "gbps": 1800.0, "of_bandwidth": 0.6}
    took |= {"bandwidth_gbps": 3000.0, "error": 1e-4}
    beside = {"ratio_dense": 3.5, "baselines_ms": {"Triton": [0.1, 0.105, 0.11]}}
    others = {"backends_ms": {"triton": [0.1, 0.12, 0.13]}, "backends_ratio": {"triton": 4.0}}
    print_speed([what | took | beside | others], "Speed")
    said = capsys.readouterr().out
    for part in ("decode", "8 x 8192", "30.0 (29.0-31.0)", "3.50", "4.00", "Triton 105; triton 120", "3000 to 3000"):
        assert part in said
