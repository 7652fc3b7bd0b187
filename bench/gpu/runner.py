"""Runs stages in processes of their own: goes on behind faults, ends what hangs, and keeps every line on disk."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.gpu.worker import BROKEN, FAILURES, FAILURES_OF_A_KEY
from leankv_sglang.processes import tied

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    """How far a stage has come.

    Attributes:
        stall: seconds after which a job that says nothing is taken to hang.
        grace: seconds that a job may take behind the time at which none begins.
        next: the number of its next job.
        passed, failed: jobs.
        keys: failures by what they are about.
    """

    name: str
    stall: float = 60.0
    grace: float = 20.0
    next: int = 0
    passed: int = 0
    failed: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    found: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """For the table."""
        return "ok" if self.passed and not self.failed else "FAILED" if self.failed else "nothing ran"


class Runner:
    """Starts workers.

    Args:
        out: a folder; ``jobs.jsonl`` in it gets a line for every job.
        options: of every worker: device, backend, seed.
    """

    def __init__(self, out: Path, options: list[str]) -> None:
        self.out, self.options = out, options
        self._lock = threading.Lock()

    def run(
        self,
        stage: Stage,
        until: float,
        count: int = sys.maxsize,
        wrapper: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
    ) -> list[str]:
        """Jobs of a stage from its next on, so many at most, until a time, their workers started under a command, with
        more options; what was printed besides.
        """
        printed: list[str] = []
        last = stage.next + count if count < sys.maxsize else sys.maxsize
        while stage.next < last and time.time() < until and stage.failed < FAILURES:
            limits = ["--first", str(stage.next), "--until", str(until)]
            if last < sys.maxsize:
                limits += ["--count", str(last - stage.next)]
            without = [key for key, times in stage.keys.items() if times >= FAILURES_OF_A_KEY]
            command = [*wrapper, sys.executable, "-m", "bench.gpu.worker", stage.name, *self.options, *options, *limits]
            if not self._one(stage, command + (["--without", *without] if without else []), until, printed):
                break
        return printed

    def _one(self, stage: Stage, command: list[str], until: float, printed: list[str]) -> bool:
        """One process; whether another has to go on behind a job that broke it."""
        with (self.out / f"{stage.name}.stderr").open("ab") as errors:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                preexec_fn=tied(),
            )
            assert process.stdout
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
            running: dict[str, Any] | None = None
            hung = False
            while True:
                try:
                    line = lines.get(timeout=min(stage.stall, max(1.0, until + stage.grace - time.time())))
                except queue.Empty:
                    hung = True
                    os.killpg(process.pid, signal.SIGKILL)
                    break
                if line is None:
                    break
                what = _parsed(line)
                if what is None:
                    printed.append(line.rstrip())
                elif what.get("begun"):
                    running = what
                elif "job" in what:
                    running = None
                    self._note(stage, what)
            status = process.wait()
        if running is None:
            if status not in (0, BROKEN):
                last = self._last_error(stage)
                self._note(stage, {"job": stage.next, "key": "worker", "name": "the worker", "ok": False, "why": last})
            return status == BROKEN
        if hung and time.time() > until:
            return False  # its time was over
        why = f"hangs for {stage.stall:.0f} s" if hung else f"ends its process with {status}: {self._last_error(stage)}"
        self._note(stage, {**running, "ok": False, "why": why})
        return True

    def _note(self, stage: Stage, what: dict[str, Any]) -> None:
        stage.next = max(stage.next, what["job"] + 1)
        stage.passed += what["ok"]
        stage.failed += not what["ok"]
        with self._lock:
            with (self.out / "jobs.jsonl").open("a") as file:
                file.write(json.dumps({"stage": stage.name, **what}) + "\n")
            if not what["ok"]:
                stage.keys[what["key"]] += 1
                again = f"python -m bench.gpu.worker {stage.name} {' '.join(self.options)} --only {what['job']}"
                print(f"FAILED {stage.name}: {what['name']}: {what['why']} | again: {again}", flush=True)
        if what.get("found"):
            stage.found.append(what["found"])

    def _last_error(self, stage: Stage) -> str:
        text = (self.out / f"{stage.name}.stderr").read_text(errors="replace").strip()
        return text.splitlines()[-1][:300] if text else "no message"


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
