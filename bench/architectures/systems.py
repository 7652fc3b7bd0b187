"""The servers of one model: stock SGLang, LeanKV whole, and LeanKV in chunks; or why there is none."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from bench.architectures.asks import PAGE, Findings, examine, misses, prompts
from bench.common.server import Server, serve
from leankv_sglang.processes import Process
from tests.e2e.forked import Zygote
from tests.models_served import Model

LEANKV = ("--leankv-tiers", "k8v8")
"""One tier of 8 bits, in which nothing is pruned."""
FLAGS = ("--max-total-tokens", "8192", "--max-running-requests", "16", "--skip-server-warmup")
PAGES = ("--page-size", str(PAGE))
RECURRENT = ("--page-size", "1", "--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule")
"""As stock serves recurrent layers on a CPU, and asks for where they are not given."""
WHOLE, CHUNKS = 4096, (64, 128)
SYSTEMS = {"stock": WHOLE, "leankv": WHOLE, **{f"leankv, chunks of {size}": size for size in CHUNKS}}
"""Tokens prefilled at once."""
STARTED_IN = 90.0
_RAISED = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failed|Interrupt)\b.*", re.MULTILINE)
_FOLLOWS = re.compile(r"KeyboardInterrupt|\S*(Connection|MaxRetry)")
"""What is raised only because the server is lost."""
_SAID = re.compile(r"^(?:error: )?(LeanKV (?:cannot|could not|ended).*)", re.MULTILINE)


class Fleet:
    """Starts servers, forked from one process that has imported sglang; several threads may.

    Args:
        zygote: that process.
        logs: a folder for what servers print.
    """

    def __init__(self, zygote: Zygote, logs: Path) -> None:
        self._zygote, self._logs, self._lock = zygote, logs, threading.Lock()

    def _start(self, module: str, args: list[str], output: IO[bytes], env: dict[str, str]) -> Process:
        with self._lock:
            return self._zygote.start(module, args, output, env)

    def find(self, system: str, name: str, model: Model, folder: Path) -> Findings:
        """What a server of a model says.

        Args:
            system: of ``SYSTEMS``.
            name: of the model, for its log.
            model: its entry.
            folder: its weights.
        """
        found = self._ask(system, name, model, folder, PAGES if system == "stock" else (*PAGES, *LEANKV))
        if system == "stock" and found.lost and re.search("extra_buffer|no_buffer", found.lost):
            found = self._ask(system, name, model, folder, RECURRENT)
            found.note = "page size 1"
        return found

    def _ask(self, system: str, name: str, model: Model, folder: Path, own: tuple[str, ...]) -> Findings:
        stock = system == "stock"
        asks: Callable[[Server], Findings] = examine if SYSTEMS[system] == WHOLE else _misses
        flags = ("--model-path", str(folder), *FLAGS, *own, "--chunked-prefill-size", str(SYSTEMS[system]))
        flags = (*flags, *(("--is-embedding",) if model.embeds else ()))
        log = self._logs / f"{name}, {system}.log"
        try:
            with serve(*flags, stock=stock, start=self._start, log_file=log, timeout=STARTED_IN) as server:
                found = Findings() if model.embeds else asks(server)
                # Stock takes 6 seconds to end when it is asked.
                with suppress(ProcessLookupError):
                    os.killpg(server.process.pid, signal.SIGKILL)
                return found
        except (RuntimeError, OSError, LookupError) as error:
            return Findings(lost=reason(log.read_text(errors="replace")) or str(error).splitlines()[0])


def reason(log: str) -> str | None:
    """The sentence with which LeanKV refused, or what was raised first, of all that a server printed."""
    if said := _SAID.findall(log):
        return str(said[-1])
    raised = [line for line in _RAISED.findall(log) if not _FOLLOWS.match(line)]
    return raised[0] if raised else None


def _misses(server: Server) -> Findings:
    return Findings(misses(server, prompts()))
