"""Plots of bench rows, saved as PNG or SVG by the file's ending."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def save_plot(draw: Callable[[str], bool], file: str) -> None:
    """Have a plot drawn into a file, and say in one line where it is, or why there is none.

    Args:
        draw: draws into a file, PNG or SVG by its ending; False where no row has anything to be drawn.
        file: its folder is made where there is none.
    """
    if importlib.util.find_spec("matplotlib") is None:
        print("No plot: matplotlib is not installed.")
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    print(f"Plot: {file}" if draw(file) else "No plot: no row that was measured is drawn.")


def heatmaps(
    tables: dict[str, Sequence[Sequence[float]]], file: str, *, x_text: str, y_text: str, value_text: str, title: str
) -> bool:
    """One panel a table of rows of values, all on one colour scale that begins at 0; True."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, columns = (max(map(size, tables.values())) for size in (len, lambda table: len(table[0])))
    top = max(value for table in tables.values() for row in table for value in row)
    wide, high = min(1.6 + 0.35 * columns, 6), min(2 + 0.2 * rows, 10)
    figure, axes = pyplot.subplots(
        1, len(tables), figsize=(wide * len(tables) + 1.5, high), squeeze=False, layout="constrained"
    )
    for (name, table), panel in zip(tables.items(), axes[0], strict=True):
        image = panel.imshow(table, aspect="auto", vmin=0, vmax=top, cmap="viridis", interpolation="nearest")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel(x_text)
        panel.set_xticks(range(columns) if columns <= 16 else range(0, columns, 8))
    axes[0][0].set_ylabel(y_text)
    figure.colorbar(image, ax=axes[0].tolist(), label=value_text)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True


def label_points(
    ax: Any, labels: Sequence[tuple[str, float, float, str]], avoid: Sequence[tuple[float, float]] = ()
) -> None:
    """Write names beside points, each where it covers the least of other names, points and the legend.

    Args:
        labels: text, x, y and the font's weight; the first ones choose first.
        avoid: points not to be covered, besides those of the labels.
    """
    from matplotlib.transforms import Bbox

    figure = ax.figure
    figure.tight_layout()
    renderer = figure.canvas.get_renderer()
    points = [ax.transData.transform((x, y)) for x, y in [*avoid, *((x, y) for _, x, y, _ in labels)]]
    taken = [Bbox.from_extents(px - 5, py - 5, px + 5, py + 5) for px, py in points]
    if legend := ax.get_legend():
        taken += [legend.get_window_extent(renderer)] * 4
    sides = (("left", 1), ("right", -1))
    for text, x, y, weight in labels:
        best = None
        for far in (7, 14, 24):
            for rise in (0, 0.7, -0.7, 1.4, -1.4):
                for align, way in sides:
                    note = ax.annotate(
                        text,
                        (x, y),
                        xytext=(way * far, rise * (far + 2)),
                        textcoords="offset points",
                        horizontalalignment=align,
                        verticalalignment="center",
                        fontsize=7.5,
                        fontweight=weight,
                        arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey"} if far > 7 else None,
                    )
                    box = note.get_window_extent(renderer)
                    cost = sum(box.overlaps(other) for other in taken) + far / 100 + abs(rise) / 100
                    inside = ax.bbox.containsx(box.x0) and ax.bbox.containsx(box.x1)
                    cost += 0 if inside and ax.bbox.containsy(box.y0) and ax.bbox.containsy(box.y1) else 3
                    if best is None or cost < best[0]:
                        if best:
                            best[1].remove()
                        best = cost, note, box
                    else:
                        note.remove()
        if best:
            taken.append(best[2])
