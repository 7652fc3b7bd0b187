"""Servers that run side by side: begun at once, each with a log of its own, gone when they are stopped or fail."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.common.server import Process, Server, Start, serve
from leankv_sglang.processes import tied

GRAPH = "cuda graph: True"
"""What SGLang's log says of a decode step that was a graph's replay."""
_LOG_END = 200_000


class System(NamedTuple):
    """A server to be measured: stock SGLang's or ours, and its flags."""

    stock: bool
    flags: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


class Fleet:
    """Servers by name.

    Args:
        folder: for their logs, and the folder that they are started in.
        start: how a process begins.
    """

    def __init__(self, folder: Path, start: Start | None = None) -> None:
        self.folder, self._start = folder, start or self._in_folder
        folder.mkdir(parents=True, exist_ok=True)
        self.servers: dict[str, Server] = {}
        self._open: dict[str, AbstractContextManager[Server]] = {}
        self._lock = threading.Lock()

    def start(self, systems: dict[str, System], timeout: float) -> dict[str, Any]:
        """Begin servers at once; of each the seconds until it answered, or why it did not."""
        found: dict[str, Any] = {name: {"ready_s": None, "why": "did not answer in time"} for name in systems}

        def begin(name: str, system: System) -> None:
            if self.log(name).exists():
                self.log(name).rename(self.log(f"{name}-before"))
            context = serve(
                *system.flags,
                stock=system.stock,
                env=dict(system.env),
                start=self._one_by_one,
                log_file=self.log(name),
                timeout=timeout,
            )
            try:
                server = context.__enter__()
            except Exception as error:
                found[name]["why"] = short(error)
                return
            with self._lock:
                self.servers[name], self._open[name] = server, context
            found[name] = {"ready_s": server.ready_seconds, "why": None}

        threads = [threading.Thread(target=begin, args=pair, daemon=True) for pair in systems.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout + 30)
        return found

    def stop(self, names: Iterable[str] | None = None) -> None:
        """End some servers, by default all."""
        with self._lock:
            contexts = [
                self._open.pop(name) for name in list(self._open if names is None else names) if name in self._open
            ]
            ended = [self.servers.pop(name).process for name in list(self.servers) if name not in self._open]
        # At once, and not politely, which takes each some six seconds.
        for process in ended:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process, context in zip(ended, contexts, strict=True):
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            context.__exit__(None, None, None)

    def running(self, names: Iterable[str]) -> dict[str, Server]:
        """Those of the named that still run."""
        named = {name: self.servers[name] for name in names if name in self.servers}
        return {name: server for name, server in named.items() if server.process.poll() is None}

    def log(self, name: str) -> Path:
        """Where a server writes."""
        return self.folder / f"{name}.log"

    def graph_steps(self, name: str) -> bool | None:
        """Whether decode steps were replays of graphs, by its log; None where it says of none."""
        file = self.log(name)
        lines = file.read_text(errors="replace").splitlines() if file.exists() else []
        decodes = [GRAPH in line for line in lines if "Decode batch" in line and "cuda graph:" in line]
        return any(decodes) if decodes else None

    def save_logs(self, target: Path) -> None:
        """All logs, of each its beginning and end, in one archive."""
        with tarfile.open(target, "w:gz") as tar:
            for file in sorted(self.folder.glob("*.log")):
                data = file.read_bytes()
                if len(data) > 2 * _LOG_END:
                    data = data[:_LOG_END] + b"\n[...]\n" + data[-_LOG_END:]
                info = tarfile.TarInfo(file.name)
                info.size, info.mtime = len(data), int(time.time())
                tar.addfile(info, io.BytesIO(data))

    def _one_by_one(self, module: str, args: list[str], output: IO[bytes], env: dict[str, str]) -> Process:
        with self._lock:
            return self._start(module, args, output, env)

    def _in_folder(self, module: str, args: list[str], output: IO[bytes], env: dict[str, str]) -> Process:
        """Not in the checkout, whose folder ``kernels`` hides a package of that name."""
        command = [sys.executable, "-m", module, *args]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
            preexec_fn=tied(),
        )


def short(error: BaseException) -> str:
    """An error in one line: its end tells most."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{' ... ' + text[-300:] if len(text) > 500 else text[200:]}"
