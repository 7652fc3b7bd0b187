"""The heat map of bytes by layer and KV head, and the tiers of one of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from leankv_sglang.observability.live.page.watch import RankView
from leankv_sglang.observability.live.page.words import say_bytes, say_count, say_seconds, say_share

MOST_COLUMNS, MOST_LINES = 32, 64
COLOURS = 6
CELL_PIXELS = 14
TIERS = ("high", "mid", "low", "pruned")


def heads_view(view: RankView, layer: int, head: int, now: float) -> dict[str, Any]:
    """The section's figures; a layer or head beyond the last is the last."""
    heads = view.heads
    if heads is None or not heads.counts[..., 0].any():
        return {"cells": [], "layers": 0, "heads": 0, "tiers": [], "lines": []}
    counts = heads.counts
    layers, columns = counts.shape[:2]
    layer, head = min(layer, layers - 1), min(head, columns - 1)
    shown, by_layers, by_heads = _fit(counts[..., 0])
    low, high = shown.min(), shown.max()
    cells = [
        {
            "x": f"{100 * j / shown.shape[1]:.3f}%",
            "y": i * CELL_PIXELS,
            "colour": int((COLOURS - 1) * (shown[i, j] - low) / (high - low) + 0.5) if high > low else 0,
            "chosen": (layer // by_layers, head // by_heads) == (i, j),
            "layer": i * by_layers,
            "head": j * by_heads,
            "said": f"layer {i * by_layers}, head {j * by_heads}: {say_bytes(float(shown[i, j]))}",
        }
        for i in range(shown.shape[0])
        for j in range(shown.shape[1])
    ]
    tokens = counts[layer, head, 1:]
    per_token = counts[layer, head, 0] / max(int(tokens.sum()), 1)
    order = np.argsort(counts[..., 0], axis=None)[::-1]
    extremes = [*order[:5], *order[-5:]] if len(order) > 10 else list(order)
    return {
        "cells": cells,
        "width": f"{100 / shown.shape[1]:.3f}%",
        "height": shown.shape[0] * CELL_PIXELS,
        "cell": CELL_PIXELS,
        "layers": layers,
        "heads": columns,
        "merged": by_layers * by_heads,
        "layer": layer,
        "head": head,
        "pages": say_count(heads.pages),
        "low": say_bytes(float(low)),
        "high": say_bytes(float(high)),
        "age": say_seconds(now - heads.read_at),
        "per_token": f"{per_token:.1f} B",
        "tiers": [
            (tier, say_count(int(n)), say_share(int(n), int(tokens.sum())))
            for tier, n in zip(TIERS, tokens, strict=True)
        ],
        "lines": [_line(counts, *divmod(int(i), columns)) for i in extremes],
    }


def _fit(nbytes: Any) -> tuple[Any, int, int]:
    """Means over neighbouring layers and heads, as many as it takes to fit the picture; and how many those are."""
    by_layers, by_heads = -(-nbytes.shape[0] // MOST_LINES), -(-nbytes.shape[1] // MOST_COLUMNS)
    if by_layers == by_heads == 1:
        return nbytes, 1, 1
    lines = [nbytes[i : i + by_layers].mean(0) for i in range(0, nbytes.shape[0], by_layers)]
    joined = np.stack(lines)
    columns = [joined[:, j : j + by_heads].mean(1) for j in range(0, joined.shape[1], by_heads)]
    return np.stack(columns, 1), by_layers, by_heads


def _line(counts: Any, layer: int, head: int) -> dict[str, str]:
    tokens = counts[layer, head, 1:]
    total = int(tokens.sum())
    shares = {tier: say_share(int(n), total) for tier, n in zip(TIERS, tokens, strict=True)}
    return {"layer": str(layer), "head": str(head), "bytes": say_bytes(int(counts[layer, head, 0])), **shares}
