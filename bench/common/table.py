"""Rows to a terminal table and to JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_table(rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Print rows (dicts with the same keys) with aligned columns."""
    if not rows:
        return
    names = list(rows[0])
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    if title:
        print(f"\n{title}")
    for line in (names, ["-" * w for w in widths], *cells):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


def write_json(path: str | None, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to ``path``, if one is given."""
    if path:
        Path(path).write_text(json.dumps(list(rows), indent=1) + "\n")
