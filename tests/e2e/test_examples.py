"""The examples run as they are, against a server that is told to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.common.server import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *args: str, seconds: float = 180) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openai_client.py", "of them from the cache"),
        ("frontend_program.py", "tokens cached)"),
        ("request_accuracy.py", "times fewer than in 16 bits"),
    ],
)
def test_an_example_runs(name: str, said: str, server: Server) -> None:
    assert said in run(name, server.url)


def test_the_engine_answers_in_process() -> None:
    assert "Paris" in run("engine.py")


def test_monitoring_prints_a_line_a_second(server: Server) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as ended:
        subprocess.run(
            [sys.executable, "-u", str(EXAMPLES / "monitoring.py"), server.url], capture_output=True, timeout=5
        )
    assert b"tokens held" in (ended.value.stdout or b"")
