"""Rows to a terminal table (the package's own) and to JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leankv_sglang.table import print_table

__all__ = ["print_table", "write_json"]


def write_json(path: str | None, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to ``path``, if one is given."""
    if path:
        Path(path).write_text(json.dumps(list(rows), indent=1) + "\n")
