"""Servers and launches that are forked from a process which has imported sglang already (see zygote.py)."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from bench.common.server import Server, serve
from leankv_sglang.environment import has_accelerator
from leankv_sglang.processes import Process, start_module, stop

ROOT = Path(__file__).resolve().parents[2]


class Forked:
    """A running process that is nobody's child here; of ``subprocess.Popen`` what servers use."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid, self._status = pid, status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, -9 for one that was killed."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(os.read(self._status, 16) or b"-9")
            os.close(self._status)
        return self.returncode


class Zygote:
    """Begins when it is made; ``stop`` it in the end. With an accelerator, which no fork can share, it starts every
    process anew.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if has_accelerator():
            return
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-u", "-m", "tests.e2e.zygote", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._requests.close()
            self._process.wait(30)

    def start(self, module: str, args: list[str], output: IO[bytes], env: dict[str, str]) -> Process:
        """``python -m``, with an environment in addition to ours."""
        if not self._process:
            return start_module(module, args, output, env)
        ours, theirs = os.pipe()
        request = {"module": module, "args": args, "env": {**os.environ, **env}}
        socket.send_fds(self._requests, [json.dumps(request).encode()], [output.fileno(), theirs])
        os.close(theirs)
        return Forked(int(self._requests.recv(16)), ours)

    def run(self, args: list[str], env: dict[str, str], module: str = "leankv_sglang.launch_server") -> tuple[int, str]:
        """The exit code of a launch, or another module, that ends by itself, and what it printed."""
        with tempfile.TemporaryFile() as output:
            process = self.start(module, args, output, env)
            try:
                code = process.wait(180)
            finally:
                stop(process)
            output.seek(0)
            return code, output.read().decode()

    def serve(
        self, *args: str, env: dict[str, str] | None = None, stock: bool = False
    ) -> AbstractContextManager[Server]:
        """``bench.common.server.serve``, forked."""
        return serve(*args, env=env, stock=stock, start=self.start)
