"""Memory of the GPU, by nvidia-smi and by the servers' own account."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from bench.common.server import Server


def _query(what: str) -> list[list[str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-{what}", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in out.splitlines() if line.strip()]


def used_mib() -> int | None:
    """MiB in use on the first GPU."""
    rows = _query("gpu=memory.used")
    return int(rows[0][0]) if rows and rows[0][0].isdecimal() else None


def used_by(servers: dict[str, Server]) -> dict[str, int | None]:
    """MiB of each server's processes, which are of a session of their own; None where the driver does not tell."""
    found: dict[str, int | None] = dict.fromkeys(servers)
    for pid, used in (row[:2] for row in _query("compute-apps=pid,used_memory") if len(row) >= 2):
        if not (pid.isdecimal() and used.isdecimal()):
            continue
        try:
            session = os.getsid(int(pid))
        except OSError:
            continue
        for name, server in servers.items():
            if server.process.pid == session:
                found[name] = (found[name] or 0) + int(used)
    return found


def account(server: Server) -> dict[str, Any]:
    """What the server says of its weights, pool and graphs, in GB, and how many tokens it holds."""
    said = server.info().get("memory_usage", {})
    return {key: said[key] for key in ("weight", "kvcache", "token_capacity", "graph") if key in said}
