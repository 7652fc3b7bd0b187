"""Rows to tables; rows of other systems are merged by the same keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.common.table import print_table
from bench.quality.harness import Row
from bench.quality.plot import OURS, label_of

KEYS = ("system", "profile", "task", "ratio", "kl", "ppl_rel", "top1", "score", "score_raw")
_COLUMNS = ("kind", "name", "ratio", "ratio_if_freed")
_LOSSES = ("kl", "kl_tail", "top1", "top1_tail", "ppl_rel", "ppl_rel_tail", "ppl")
_SCORES = ("score", "score_raw", "lost", "won", "spread_diff", "ratio_context", "tokens_out")


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
            rows.append({**dict.fromkeys(KEYS), "kind": family(row), **row})
    return rows


def family(row: Row) -> str:
    """The family of a rival's row: what quantizes, or prunes, or both, rather than the library it runs in."""
    system, profile = str(row["system"]), str(row.get("profile") or "")
    if system == "transformers" and profile:
        return profile.split()[0]
    return f"{system} + int4" if system == "kvpress" and " + " in profile else system


def same_windows(row: Row, rows: Sequence[Row]) -> str | None:
    """Whether a row is about the windows of text that ours are about: ``yes``, or how many of them it shares.

    None where the row does not name its windows, or nobody's are known.
    """
    ours = next((other["windows"] for other in rows if other["kind"] == OURS and other.get("windows")), None)
    if not ours or not row.get("windows"):
        return None
    shared = len(set(ours) & set(row["windows"]))
    return "yes" if row["windows"] == ours else f"{shared} of {len(ours)}"


def print_rows(rows: Sequence[Row]) -> None:
    """One table a model and task, by ratio; columns that no row fills are left out.

    ``same windows`` tells, of rows of text, which are about the very windows of ours.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row.get("model", "")), row["task"]), []).append(row)
    for (model, task), members in groups.items():
        members = [{**row, "name": label_of(row), "same windows": same_windows(row, members)} for row in members]
        wanted = [*_COLUMNS, *_LOSSES, *_SCORES, "spread", "n", "same windows"]
        shown = [c for c in wanted if any(row.get(c) is not None for row in members)]
        members = sorted(members, key=lambda row: row["ratio"] or 0)
        cells = [{c: "" if row.get(c) is None else row[c] for c in shown} for row in members]
        print_table(cells, f"{model}: {task}")
