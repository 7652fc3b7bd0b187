"""The icicle's boxes with all that the page says of them."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leankv_sglang.observability.live.page.icicle import GIVEN_UP, Box
from leankv_sglang.observability.live.page.watch import RankView, Tree
from leankv_sglang.observability.live.page.words import say_bytes, say_count, say_ratio, say_seconds

RATIOS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Between which the colours of nodes change."""
ROW_PIXELS = 26
TABLE_ROWS = 60
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Drawn:
    """A box as the template draws it: places in percent and pixels, its colour, what it is hatched with, its outline,
    its label, and what is said of it when it is pointed at."""

    x: str
    y: int
    width: str
    colour: int
    hatch: str
    locked: bool
    label: str
    said: str


def tree_view(view: RankView, decode: Decode | None, now: float) -> dict[str, Any]:
    """What the section of the tree is made of; ``decode`` makes text of tokens, where text may be shown."""
    tree = view.tree
    if tree is None:
        return {"boxes": [], "height": ROW_PIXELS, "table": [], "nodes": 0, "tokens": 0, "shown": 0, "read": None}
    drawn = tree.icicle
    raw = _raw_bytes(view)
    clock = _Clock(view.samples)
    boxes = [_draw(box, tree, raw, clock, decode, now) for box in drawn.boxes]
    widest = sorted((b for b in drawn.boxes if b.row != GIVEN_UP), key=lambda b: -b.tokens)[:TABLE_ROWS]
    return {
        "boxes": boxes,
        "height": drawn.levels * ROW_PIXELS,
        "table": [_cells(box, tree, raw, clock, decode, now) for box in widest],
        "nodes": drawn.nodes,
        "tokens": drawn.tokens,
        "bytes": int(tree.rows["bytes"].sum()),
        "shown": drawn.shown,
        "read": now - tree.read_at,
        "took": tree.seconds,
    }


class _Clock:
    """When SGLang's counter of accesses had a value, by the samples of the history."""

    def __init__(self, samples: Any) -> None:
        self._used = [sample["used"] for sample in samples]
        self._time = [sample["time"] for sample in samples]

    def said(self, used: float, now: float) -> str:
        """How long ago that was, as well as samples tell."""
        at = bisect.bisect_right(self._used, used)
        if not self._used or at == 0:
            return f"over {say_seconds(now - self._time[0])} ago" if self._time else "-"
        if at == len(self._used):
            return "just now"
        return f"{say_seconds(now - self._time[at])} ago"


def _raw_bytes(view: RankView) -> float:
    """Bytes of a token in the model's dtype; 0 while that is not known."""
    figures = view.body.get("figures", {})
    return figures["bytes_raw"] / figures["tokens_held"] if figures.get("tokens_held") else 0.0


def _draw(box: Box, tree: Tree, raw: float, clock: _Clock, decode: Decode | None, now: float) -> Drawn:
    place = f"{100 * box.x:.3f}%", box.level * ROW_PIXELS, f"{100 * box.width:.3f}%"
    if box.row == GIVEN_UP:
        said = f"{say_count(box.nodes)} nodes more, {say_count(box.tokens)} tokens"
        return Drawn(*place, -1, "", False, f"+{box.nodes}", said)
    row = tree.rows[box.row]
    cells = _cells(box, tree, raw, clock, decode, now)
    ratio = row["tokens"] * raw / row["bytes"] if row["bytes"] else 0.0
    said = (
        f"{cells['name']}: {cells['tokens']} tokens, {cells['bytes']} ({cells['ratio']}), {cells['state']}, "
        f"used {cells['used']}, {cells['hits']} hits"
    )
    label = cells["name"] if decode else cells["tokens"]
    return Drawn(*place, bisect.bisect_right(RATIOS, ratio), _hatch(row), bool(row["locked"]), label, said)


def _hatch(row: Any) -> str:
    if row["demoted"]:
        return "demoted"
    if row["trimmed"]:
        return "trimmed"
    if row["host"]:
        return "host"
    return "stored" if row["stored"] else ""


def _cells(box: Box, tree: Tree, raw: float, clock: _Clock, decode: Decode | None, now: float) -> dict[str, str]:
    """A node's line of the table."""
    row = tree.rows[box.row]
    node, pages = str(int(row["node"])), int(row["pages"])
    counts: Sequence[tuple[str, int]] = [
        (what, int(row[what])) for what in ("trimmed", "demoted", "host") if int(row[what])
    ]
    words = {"trimmed": "trimmed", "demoted": "demoted", "host": "in host memory too"}
    state = [f"{count} of {pages} pages {words[what]}" for what, count in counts] or ["whole"]
    if row["stored"]:
        state.append("in the store too")
    if row["locked"]:
        state.append("read by a running request")
    name = f"{int(row['digest']):016x}"[:8]
    if decode and node in tree.text:
        name = decode(tree.text[node])
    accuracy = f", accuracy {tree.accuracy[node]}" if node in tree.accuracy else ""
    return {
        "name": name,
        "level": str(box.level + 1),
        "tokens": say_count(int(row["tokens"])),
        "below": say_count(box.tokens),
        "bytes": say_bytes(int(row["bytes"])),
        "ratio": say_ratio(row["tokens"] * raw / row["bytes"] if row["bytes"] else None),
        "state": ", ".join(state) + accuracy,
        "used": clock.said(float(row["used"]), now),
        "hits": say_count(int(row["hits"])),
    }
