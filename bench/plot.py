"""Plots of bench rows, saved as PNG or SVG by the file's ending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def scatter(
    rows: Sequence[dict[str, Any]], x: str, y: str, label: str, file: str, *, x_text: str, y_text: str, title: str
) -> None:
    """One labelled point a row, log scale upwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    axes.set_yscale("log")
    for row in rows:
        axes.plot(row[x], row[y], "o", color="tab:blue")
        axes.annotate(row[label], (row[x], row[y]), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set_xlabel(x_text)
    axes.set_ylabel(y_text)
    axes.set_title(title)
    axes.margins(x=0.3, y=0.1)
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def heatmaps(
    tables: dict[str, Sequence[Sequence[float]]], file: str, *, x_text: str, y_text: str, value_text: str, title: str
) -> None:
    """One panel a table of rows of values, all on one colour scale that begins at 0."""
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
