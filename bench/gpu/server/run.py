"""Steps under time limits: each ends on its own, by the clock or by force, and what is known is on disk after it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu.server.fleet import Fleet, short

GRACE = 20.0
"""Seconds that a step may take beyond its limit before its servers are ended."""
END = 5.0
"""Seconds that a step may take beyond the end of everything."""
LEAST = 8.0
"""Seconds without which a step is not begun."""


class Clock:
    """Of one step."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def in_time(self) -> bool:
        """Whether to begin another thing."""
        return self.left() > 0


class Run:
    """One run over all steps.

    Args:
        out: a folder; ``server.json`` in it holds everything, as it stands.
        fleet: the servers.
        begin: seconds since 1970.
        seconds: for everything.
        found: what is known already.
    """

    def __init__(self, out: Path, fleet: Fleet, begin: float, seconds: float, found: dict[str, Any]) -> None:
        self.out, self.fleet, self.begin, self.seconds = out, fleet, begin, seconds
        self.found = found
        self.found.setdefault("steps", [])

    def left(self) -> float:
        """Seconds, for all that is to come."""
        return self.begin + self.seconds - time.time()

    def step(
        self, name: str, limit: float, work: Callable[[Clock], Any], needs: tuple[str, ...] = (), wants: str = ""
    ) -> bool:
        """Do one step; whether it was done whole.

        Args:
            name: its name; what ``work`` returns is kept under it.
            limit: seconds after which it should end by itself.
            work: what to do.
            needs: servers without which it is left out, and which are ended where it hangs; none named, all are.
            wants: why it is left out, where it is.
        """
        missing = [server for server in needs if server not in self.fleet.running(needs)]
        limit = min(limit, self.left())
        why = wants or (f"no server {', '.join(missing)}" if missing else "" if limit > LEAST else "no time left")
        begin, whole = time.monotonic(), False
        if not why:
            result: dict[str, Any] = {}
            clock = Clock(limit)
            thread = threading.Thread(target=self._work, args=(work, clock, result), daemon=True)
            thread.start()
            thread.join(limit + min(GRACE, max(self.left() - limit, END)))
            if thread.is_alive():
                self.fleet.stop(needs or None)
                thread.join(2 * GRACE)
                result["why"] = f"took longer than {round(limit, 1):g} s"
            if result.get("value") is not None:
                self.found[name] = result["value"]
            why = result.get("why") or ("" if clock.in_time() else f"took {limit:.0f} s and more, maybe cut short")
            whole = not result.get("why")
        seconds = time.monotonic() - begin
        self.found["steps"].append({"step": name, "seconds": round(seconds, 1), "why": why or None})
        self.save()
        print(f"[{time.time() - self.begin:5.0f} s] {name}: {why or 'done'}", flush=True)
        return whole

    def save(self) -> None:
        """Everything to disk."""
        self.found["seconds"] = round(time.time() - self.begin, 1)
        fresh = self.out / "server.json.new"
        fresh.write_text(json.dumps(self.found, indent=1, default=str) + "\n")
        fresh.replace(self.out / "server.json")
        self.fleet.save_logs(self.out / "logs.tar.gz")

    @staticmethod
    def _work(work: Callable[[Clock], Any], clock: Clock, result: dict[str, Any]) -> None:
        try:
            result["value"] = work(clock)
        except Exception as error:
            result["why"] = short(error)
