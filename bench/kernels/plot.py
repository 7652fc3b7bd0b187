"""The roofline of bench.kernels: what attention over compressed pages is worth in dense bytes per second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

MARKERS = {"k8v4": "o", "k4v2": "s", "mix": "D", "skew": "^", "balanced": "v"}


def plot_roofline(rows: Sequence[dict[str, Any]], file: str, machine: str) -> bool:
    """Dense-equivalent GB/s over the byte ratio, saved as PNG or SVG by the file's ending; False without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    points = [row for row in rows if row["op"] == "attend_committed" and "byte_ratio" in row]
    if not points:
        return False
    figure, axes = pyplot.subplots(figsize=(8, 5))
    read = statistics.median(row["bandwidth_gbps"] for row in points)
    dense = statistics.median(row["dense_gbps"] for row in points)
    reach = [1.0, 1.15 * max(row["byte_ratio"] for row in points)]
    axes.plot(reach, [read * x for x in reach], color="0.3", lw=1.2, label="limit by bytes, at measured read bandwidth")
    axes.plot(reach, [dense * x for x in reach], color="0.3", lw=1.2, ls="--", label="limit by bytes, at dense's speed")
    axes.axhline(read, color="tab:red", lw=0.9, ls=":", label=f"measured read bandwidth, {read:.3g} GB/s")
    axes.axhline(dense, color="tab:red", lw=0.9, label=f"dense bf16, {dense:.3g} GB/s (median)")
    shapes = list(dict.fromkeys(row["shape"] for row in points))
    for row in points:
        axes.plot(
            row["byte_ratio"],
            row["dense_bytes"] / row["ms"] / 1e6,
            MARKERS.get(row["tiers"], "x"),
            color=f"C{shapes.index(row['shape'])}",
            ms=6,
            alpha=0.75,
        )
    for index, shape in enumerate(shapes):
        axes.plot([], [], "o", color=f"C{index}", label=shape)
    for tiers in dict.fromkeys(row["tiers"] for row in points):
        axes.plot([], [], MARKERS.get(tiers, "x"), color="0.5", label=tiers)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(*reach)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("dense bytes / bytes read")
    axes.set_ylabel("GB/s in dense bytes (dense bytes / our time)")
    axes.set_title(f"Decode attention over compressed pages, nothing cached\n{machine}", fontsize=9)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return True
