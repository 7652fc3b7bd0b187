"""The examples run as they are, against a server that is told to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.common.server import Server
from tests.e2e.forked import Zygote

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
        ("request_accuracy.py", "times fewer than in 16 bits"),
    ],
)
def test_an_example_runs(name: str, said: str, server: Server) -> None:
    assert said in run(name, server.url)


@pytest.fixture
def forked(zygote: Zygote) -> Callable[..., str]:
    """``run`` for examples that import sglang."""

    def started(name: str, *args: str) -> str:
        code, printed = zygote.run([*args], {}, module=f"examples.{name}")
        assert code == 0, printed
        return printed

    return started


def test_a_frontend_program_hits_the_cache(forked: Callable[..., str], server: Server) -> None:
    assert "tokens cached)" in forked("frontend_program", server.url)


def test_the_engine_answers_in_process(forked: Callable[..., str]) -> None:
    assert "Paris" in forked("engine")


def test_monitoring_prints_a_line_a_second(server: Server) -> None:
    command = [sys.executable, "-u", str(EXAMPLES / "monitoring.py"), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout
        said = [running.stdout.readline() for _ in range(2)]
        running.kill()
    assert all(b"tokens held" in line for line in said)
