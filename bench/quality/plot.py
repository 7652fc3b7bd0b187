"""Quality against physical bytes, ours beside rivals: one colour and marker a family of systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.common.plot import label_points
from bench.quality.harness import Row

METRICS = {
    "kl": "KL against the 16-bit cache",
    "kl_tail": "KL against the 16-bit cache, last 512 tokens",
    "ppl_rel": "perplexity over the 16-bit cache's, less 1",
    "ppl_rel_tail": "perplexity over the 16-bit cache's, less 1, last 512 tokens",
}
"""What a plot can show of text, by the rows' keys."""
OURS = "leankv"
_MARKS = "sD^vP*Xp<>"
_X_TEXT = "bytes of a 16-bit cache over physical bytes, context of 4,096 tokens"


def label_of(row: Row) -> str:
    """A point's name: rivals' rows, and ours of a profile, have a profile's."""
    return str(row.get("profile") or row["system"])


def plot(rows: Sequence[Row], file: str, metric: str | None = None) -> bool:
    """Save one panel for text and one for scores, as far as there are rows; False where there are none.

    Args:
        file: PNG or SVG by its ending.
        metric: a key of ``METRICS``; by default KL, of the last 512 tokens where some system has no other.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = _by_model([row for row in rows if row["kind"] != "raw" and row.get("ratio")])
    texts = [row for row in rows if row["task"] == "text"]
    if metric is None:
        metric = "kl_tail" if any(row.get("kl") is None for row in texts if row.get("kl_tail") is not None) else "kl"
    texts = [row for row in texts if row.get(metric) is not None]
    # Groups of a task have a space in their name; a chat's score is its agreement, not an accuracy.
    whole = [row for row in rows if " " not in row["task"] and row["task"] != "chat"]
    scores = [row for row in whole if row.get("score") is not None and row.get("score_raw") is not None]
    panels = [draw for draw, members in ((_text, texts), (_scores, scores)) if members]
    if not panels:
        return False
    kinds = list(dict.fromkeys(row["kind"] for row in [*texts, *scores]))
    kinds.sort(key=lambda kind: not kind.startswith(OURS))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(9.5 * len(panels), 6), squeeze=False)
    for draw, ax in zip(panels, axes[0], strict=True):
        ax.set_xlabel(_X_TEXT)
        ax.grid(visible=True, which="major", alpha=0.3)
        ax.margins(x=0.08, y=0.08)
        draw(ax, texts if draw is _text else scores, kinds, metric)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points that no other beats: more ratio at no more loss."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1]))
    kept, best = [], float("inf")
    for i in order:
        if points[i][1] < best:
            kept.append(i)
            best = points[i][1]
    return kept


def _by_model(rows: Sequence[Row]) -> list[Row]:
    if len({row.get("model") for row in rows}) < 2:
        return list(rows)
    return [{**row, "kind": f"{row['kind']}, {row.get('model')}"} for row in rows]


def _name(kind: str) -> str:
    return kind.replace(OURS, "LeanKV", 1) if kind.startswith(OURS) else kind


def _look(kind: str, kinds: Sequence[str]) -> dict[str, Any]:
    at = list(kinds).index(kind)
    if kind.startswith(OURS):
        return {"color": f"C{at}", "marker": "o", "markersize": 9, "markeredgecolor": "black", "zorder": 4}
    return {"color": f"C{at}", "marker": _MARKS[at % len(_MARKS)], "markersize": 6, "alpha": 0.8}


def _text(ax: Any, rows: Sequence[Row], kinds: Sequence[str], metric: str) -> None:
    """All rows; ours and the best of the rivals with their names, of hypothetical rivals the best beside all."""
    ax.set_ylabel(METRICS[metric])
    if metric.startswith("kl"):
        # A bin of a log scale has no place for 0.
        rows = [row for row in rows if row[metric] > 0]
        ax.set_yscale("log")
    else:
        ax.set_yscale("symlog", linthresh=0.01)
        ax.axhline(0, color="grey", linewidth=0.8)
    rivals = [row for row in rows if not row["kind"].startswith(OURS)]
    real = [(row["ratio"], row[metric]) for row in rivals]
    freed = [row for row in rivals if row.get("ratio_if_freed")]
    apart = [(row["ratio_if_freed"], row[metric]) for row in freed]
    best = frontier([(x, max(y, 0)) for x, y in real])
    hopeful = [i - len(real) for i in frontier([(x, max(y, 0)) for x, y in real + apart]) if i >= len(real)]
    for kind in kinds:
        look = _look(kind, kinds)
        points = [(row["ratio"], row[metric]) for row in rows if row["kind"] == kind]
        if points:
            ax.plot(*zip(*points, strict=True), linestyle="None", label=_name(kind), **look)
        points = [p for p, row in zip(apart, freed, strict=True) if row["kind"] == kind]
        if points:
            look |= {"markerfacecolor": "none", "linestyle": "None"}
            ax.plot(*zip(*points, strict=True), label=f"{kind}, had it freed what it masks", **look)
    ours = [row for row in rows if row["kind"].startswith(OURS)]
    labels = [(label_of(row), row["ratio"], row[metric], "bold") for row in ours]
    labels += [(label_of(rivals[i]), *real[i], "normal") for i in best]
    labels += [(label_of(freed[i]), *apart[i], "light") for i in hopeful]
    ax.legend(fontsize=8, loc="lower right")
    label_points(ax, labels, avoid=[*real, *apart, *((row["ratio"], row[metric]) for row in ours)])


def _scores(ax: Any, rows: Sequence[Row], kinds: Sequence[str], _metric: str) -> None:
    for kind in kinds:
        points = [(row["ratio"], row["score"] - row["score_raw"]) for row in rows if row["kind"] == kind]
        if points:
            ax.plot(*zip(*points, strict=True), linestyle="None", label=_name(kind), **_look(kind, kinds))
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.set_ylabel("score minus the 16-bit cache's")
    ax.legend(fontsize=8)
    named = [(row["task"], row["ratio"], row["score"] - row["score_raw"], "normal") for row in rows]
    label_points(ax, named)
