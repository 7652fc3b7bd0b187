"""Bars of bench.serving: throughput, hit rate and time to first token by workload and system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FIGURES = (
    ("tok_per_s", "tokens served per second"),
    ("hit_rate", "prompt tokens from the cache"),
    ("ttft_ms_p50", "median ms to the first token"),
    ("tokens_held", "tokens held at the end"),
)


def plot_serving(rows: Sequence[dict[str, Any]], file: str) -> bool:
    """One panel a figure, one group of bars a workload, one bar a system; PNG or SVG by the file's ending. False where
    there are no rows."""
    if not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.5))
    for panel, (key, text) in zip(axes.flat, FIGURES, strict=True):
        for i, system in enumerate(systems):
            at = [
                (w + 0.8 * i / len(systems), row[key])
                for w, name in enumerate(workloads)
                for row in rows
                if row["workload"] == name and row["system"] == system
            ]
            bars = panel.bar([x for x, _ in at], [y for _, y in at], 0.75 / len(systems), label=system)
            panel.bar_label(bars, fmt="%.3g", fontsize=7)
        panel.set_xticks([w + 0.4 - 0.4 / len(systems) for w in range(len(workloads))], workloads, fontsize=8)
        panel.set_title(text, fontsize=9)
        panel.margins(y=0.15)
    axes[0][0].legend(fontsize=8)
    figure.suptitle("SmolLM2-135M on two CPU cores, equal bytes of KV cache", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True
