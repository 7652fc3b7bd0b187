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
