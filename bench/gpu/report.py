"""``python -m bench.gpu.report FOLDER``: tables of what a check found, and a plot where matplotlib is installed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common.table import print_table
from bench.kernels.plot import plot_roofline

Row = dict[str, Any]


def shown(row: Row) -> Row:
    """A row of speed for the table: quartiles in brackets, how many times our time others take."""
    baselines = row.get("baselines_ms") or {}
    others = {**baselines, **(row.get("backends_ms") or {})}
    took = "; ".join(f"{name} {1e3 * q[1]:.0f}" for name, q in sorted(others.items(), key=lambda item: item[1][1]))
    return {
        "op": row["op"].removeprefix("attend_").replace("committed", "decode"),
        "shape": row["shape"],
        "tiers": row["tiers"],
        "batch x context": f"{row['batch']} x {row['context']}",
        "us": f"{1e3 * row['ms']:.1f} ({1e3 * row['ms_low']:.1f}-{1e3 * row['ms_high']:.1f})",
        "GB/s": f"{row['gbps']:.0f}",
        "% of copy": f"{100 * row['of_bandwidth']:.0f}",
        "x best dense": f"{row['ratio_dense']:.2f}" if row.get("ratio_dense") else "",
        "x triton": f"{row['backends_ratio']['triton']:.2f}" if "triton" in row.get("backends_ratio", {}) else "",
        "error": f"{row['error']:.0e}" if "error" in row else "",
        "us of others": took,
    }


def print_speed(rows: Sequence[Row], title: str) -> None:
    """A table, and what a copy moved."""
    print_table([shown(row) for row in rows], title)
    if rows:
        copies = [row["bandwidth_gbps"] for row in rows]
        print(f"a copy, read and write: {min(copies):.0f} to {max(copies):.0f} GB/s in the same rounds", flush=True)


def speed_rows(out: Path) -> list[Row]:
    """Of ``jobs.jsonl``."""
    file = out / "jobs.jsonl"
    jobs = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for job in jobs if job["stage"] == "speed" and job.get("found") for row in job["found"]["rows"]]


def plot(out: Path, machine: str) -> bool:
    """``roofline.png`` and ``.svg``; False without matplotlib or rows."""
    rows = speed_rows(out)
    return plot_roofline(rows, str(out / "roofline.png"), machine) and plot_roofline(
        rows, str(out / "roofline.svg"), machine
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.report", description=__doc__)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    summary = json.loads((out / "summary.json").read_text())
    print_table(summary["stages"], summary["machine"])
    print_table(summary.get("sanitizer", []), "compute-sanitizer")
    print_speed(speed_rows(out), "Speed, cold")
    print(
        f"plots in {out}" if plot(out, summary["machine"]) else "no plot: matplotlib is missing, or nothing was timed"
    )


if __name__ == "__main__":
    main()
