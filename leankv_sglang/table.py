"""Tables in the terminal, of every command and bench."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d*(e[-+]?\d+)?[x%]?|-|inf|nan|")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_table(rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Print rows (dicts with the same keys), columns of numbers to the right; nothing where there are no rows."""
    if not rows:
        return
    names = list(rows[0])
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, (name, *column))) for name, column in zip(names, columns, strict=True)]
    numbers = [all(_NUMBER.fullmatch(text) for text in column) for column in columns]
    if title:
        print(f"\n{title}")
    for line in (names, ["-" * width for width in widths], *cells):
        shape = zip(line, widths, numbers, strict=True)
        print("  ".join(t.rjust(width) if right else t.ljust(width) for t, width, right in shape).rstrip())
    print(flush=True)
