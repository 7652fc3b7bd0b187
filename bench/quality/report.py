"""Rows to tables and to a plot; rows of other systems are merged by the same keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.quality.harness import Row
from bench.table import print_table

KEYS = ("system", "profile", "task", "ratio", "kl", "ppl_rel", "top1", "score", "score_raw")
_COLUMNS = ("kind", "system", "ratio", "kl", "kl_tail", "top1", "top1_tail", "ppl_rel", "ppl_rel_tail", "ppl")
_SCORES = ("score", "score_raw", "spread_diff", "ratio_context", "tokens_out")
_MARKS = "osD^vP*X<>"


def read_rows(files: Sequence[str]) -> list[Row]:
    """Rows of JSON files that others wrote: a list, or one row a line.

    Raises:
        ValueError: one sentence naming the file and what its rows lack.
    """
    rows: list[Row] = []
    for file in files:
        text = Path(file).read_text()
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
        for row in found:
            if lacking := [key for key in ("system", "task", "ratio") if key not in row]:
                raise ValueError(f"a row of {file} lacks {', '.join(lacking)}")
            rows.append({**dict.fromkeys(KEYS), "kind": row["system"], **row})
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """One table a model and task, by ratio; columns that no row fills are left out."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row.get("model", "")), row["task"]), []).append(row)
    for (model, task), members in groups.items():
        wanted = [*_COLUMNS, *_SCORES, "spread", "n"]
        shown = [c for c in wanted if any(row.get(c) is not None for row in members)]
        members = sorted(members, key=lambda row: row["ratio"] or 0)
        cells = [{c: "" if row.get(c) is None else row[c] for c in shown} for row in members]
        print_table(cells, f"{model}: {task}")


def plot(rows: Sequence[Row], file: str) -> None:
    """Quality against bytes, one series per kind of system: KL of text, and scores against the exact cache's.

    KL is of the last 512 tokens where some system has no other.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours = [row for row in rows if row["kind"] != "raw"]
    texts = [row for row in ours if row["task"] == "text" and any(row.get(k) is not None for k in ("kl", "kl_tail"))]
    tail = any(row.get("kl") is None for row in texts)
    # Groups of a task have a space in their name; a chat's score is its agreement, not an accuracy.
    whole = [row for row in ours if " " not in row["task"] and row["task"] != "chat"]
    scores = [row for row in whole if row.get("score") is not None and row.get("score_raw") is not None]
    kinds = list(dict.fromkeys(row["kind"] for row in [*texts, *scores]))
    panels = [p for p in ("kl", "score") if (texts if p == "kl" else scores)]
    if not panels:
        return
    figure, axes = pyplot.subplots(1, len(panels), figsize=(7.5 * len(panels), 5), squeeze=False)
    for panel, ax in zip(panels, axes[0], strict=True):
        if panel == "kl":
            name = "kl_tail" if tail else "kl"
            _series(ax, [r for r in texts if r.get(name)], kinds, name, label="system")
            ax.set_yscale("log")
            ax.set_ylabel("KL against the 16-bit cache" + (", last 512 tokens" if tail else ""))
        else:
            changed = [{**row, "change": row["score"] - row["score_raw"]} for row in scores]
            _series(ax, changed, kinds, "change", label="task")
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_ylabel("score minus the 16-bit cache's")
        ax.set_xlabel("bytes of a 16-bit cache over physical bytes")
        ax.grid(visible=True, which="both", alpha=0.3)
        ax.margins(x=0.25, y=0.1)
        ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _series(ax: Any, rows: Sequence[Row], kinds: Sequence[str], y: str, label: str) -> None:
    for i, kind in enumerate(kinds):
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["ratio"])
        if not mine:
            continue
        line = ":" if label == "system" else "None"
        points = [row["ratio"] for row in mine], [row[y] for row in mine]
        ax.plot(*points, linestyle=line, marker=_MARKS[i % len(_MARKS)], label=kind, alpha=0.8)
        for row in mine:
            ax.annotate(f"{row[label]}", (row["ratio"], row[y]), textcoords="offset points", xytext=(5, 4), fontsize=7)
