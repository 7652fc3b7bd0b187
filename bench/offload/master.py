"""A Mooncake master for the time of a bench."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common.processes import held
from leankv_sglang.processes import Process, free_port, start


def has_mooncake() -> bool:
    """Whether the package is installed, with its master."""
    return importlib.util.find_spec("mooncake") is not None and _program() is not None


def _program() -> str | None:
    return shutil.which("mooncake_master", path=str(Path(sys.executable).parent)) or shutil.which("mooncake_master")


@contextmanager
def mooncake_master(port: int | None = None) -> Iterator[tuple[str, Process]]:
    """Its address, as ``--leankv-store`` takes it, and its process."""
    program, port = _program(), port or free_port()
    assert program is not None, "the package mooncake is not installed"
    command = [program, "-rpc_port", str(port), "-metrics_port", str(free_port()), "-enable_metric_reporting=false"]
    with tempfile.TemporaryFile() as log:
        process = start(command, log)
        with held(process):
            _wait_for(port)
            yield f"mooncake://127.0.0.1:{port}", process


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the Mooncake master does not listen")
