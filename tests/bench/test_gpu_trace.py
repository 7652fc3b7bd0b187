"""Profiles of a server and the gaps in them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.server import trace
from bench.gpu.server.trace import gaps, read


def kernel(begin: float, length: float, name: str = "attend", category: str = "kernel") -> dict[str, Any]:
    """An event of a trace."""
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": length}


def test_gaps_between_kernels_are_found(tmp_path: Path) -> None:
    events = [
        kernel(0, 10),
        kernel(400, 10),  # the gap before it is of the profiler's start
        kernel(1000, 500, "gemm"),
        kernel(1100, 50),  # on another stream, at the same time
        kernel(1450, 100, "copy", "gpu_memcpy"),  # overlaps the first
        kernel(1700, 50),  # 150 us after the copy
        kernel(1760, 3200),
        kernel(0, 99999, "aten::mm", "cpu_op"),
        {"ph": "M", "cat": "kernel", "name": "process_name"},
    ]
    # Unsorted, as traces are.
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"traceEvents": events[::-1]}))
    found = gaps(read(file), begin=0.15)
    assert found is not None
    assert found["longest_us"] == 590  # from 410 to 1000, which ends behind 15% of 4,960
    assert found["over_100us"] == 2
    assert found["after"] == [{"us": 590, "after": "attend"}, {"us": 150, "after": "copy"}]
    assert found["launches"] == 7
    later = gaps(events, begin=0.3)
    assert later is not None
    assert (later["longest_us"], later["over_100us"]) == (150, 1)
    assert gaps([kernel(0, 5, category="cpu_op")]) is None


def test_a_profiler_that_starts_late_still_sees_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here when two more batches have been answered since; and its file is taken once it is whole."""
    told, left = [], [99]

    def ask(*_: object) -> None:
        left[0] -= 1
        if left[0] == 1:
            (tmp_path / "a.json.gz").write_bytes(whole[:-20])
        elif left[0] == 0:
            (tmp_path / "a.json.gz").write_bytes(whole)

    def tell(_: object, path: str, body: dict[str, Any]) -> None:
        told.append(path)
        left[0] = 3 if path == "/start_profile" else 99

    whole = gzip.compress(json.dumps({"traceEvents": [kernel(i, 1) for i in range(99)]}).encode())
    monkeypatch.setattr(trace, "ask", ask)
    monkeypatch.setattr(trace, "_tell", tell)
    server: Any = None
    file = trace.profile(server, [[1]], 3, tmp_path, ["CPU"], 60)
    assert file is not None
    assert len(read(file)) == 99
    assert told == ["/start_profile", "/abort_request"]
    assert trace.profile(server, [[1]], 3, tmp_path / "other", ["CPU"], 0) is None
    assert told[2:] == ["/start_profile", "/abort_request", "/stop_profile"]
