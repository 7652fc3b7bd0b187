"""Requests as the page's table has them."""

from __future__ import annotations

import time
from typing import Any

from leankv_sglang.observability.live.page.watch import RankView
from leankv_sglang.observability.live.page.words import say_bytes, say_count, say_ratio, say_seconds

SHOWN = 16
RID_LETTERS = 12


def requests_view(view: RankView) -> dict[str, Any]:
    """Those that run, those that wait, and those that finished last, newest first."""
    body = view.body
    if not body:
        return {"lines": [], "left_out": 0}
    rows = [*body["running"], *body["waiting"], *reversed(body["finished"])]
    return {"lines": [_line(row) for row in rows[:SHOWN]], "left_out": max(0, len(rows) - SHOWN)}


def _line(row: dict[str, Any]) -> dict[str, str]:
    places = {"device": row["cached_device"], "host": row["cached_host"], "store": row["cached_store"]}
    from_where = ", ".join(f"{say_count(n)} {place}" for place, n in places.items() if n)
    state = row["state"]
    if "ended" in row:
        state = f"finished {say_seconds(max(time.time() - row['ended'], 0.0))} ago"
    return {
        "rid": row["rid"][:RID_LETTERS],
        "state": state,
        "prompt": say_count(row["prompt_tokens"]),
        "output": say_count(row["output_tokens"]),
        "cached": from_where or say_count(row["cached_tokens"]),
        "bytes": say_bytes(row["bytes"]) if row["bytes"] else "-",
        "ratio": say_ratio(row["ratio"]),
        "accuracy": row["accuracy"],
        "ttft": say_seconds(row["ttft"]),
        "seconds": say_seconds(row["seconds"]),
    }
