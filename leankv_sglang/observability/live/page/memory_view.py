"""What the device holds, now and over the last quarter of an hour; and how fast that changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leankv_sglang.observability.live.page.watch import RankView
from leankv_sglang.observability.live.page.words import (
    say_bytes,
    say_count,
    say_rate,
    say_ratio,
    say_seconds,
    say_share,
)
from leankv_sglang.observability.live.scheduler.history import KEPT_SECONDS

PARTS = {
    "high": "high tier",
    "mid": "middle tier",
    "low": "low tier",
    "near": "near parts",
    "overhead": "headers, padding, tables",
    "open": "open pages (all request rows)",
    "free": "free",
}
_OVERHEAD = ("header", "padding", "table")
CHART_WIDTH, CHART_HEIGHT = 600, 160
SPANS = {"10 seconds": 10.0, "a minute": 60.0, "15 minutes": KEPT_SECONDS}
_RATES = {
    "prompt tokens": "prompt",
    "tokens generated": "output_now",
    "pages committed": "pages_committed",
    "pages trimmed": "pages_trimmed",
    "pages demoted": "pages_demoted",
    "pages evicted": "pages_evicted",
    "pages healed": "pages_healed",
    "requests finished": "requests",
}


def memory_view(view: RankView) -> dict[str, Any]:
    """The bar of what the device holds, a line a part."""
    figures = view.body.get("figures")
    if not figures:
        return {"parts": [], "total": "-"}
    parts = _parts(figures["bytes"])
    parts["open"] = view.body["open_rows"]
    # Whole blocks: their list and padding are headers' and padding's already.
    parts["free"] = figures["blocks_free"] * figures["block_bytes"]
    total = sum(parts.values())
    at, lines = 0.0, []
    for part, nbytes in parts.items():
        width = 100 * nbytes / total if total else 0.0
        lines.append(
            {
                "part": part,
                "name": PARTS[part],
                "x": f"{at:.3f}%",
                "width": f"{width:.3f}%",
                "bytes": say_bytes(nbytes),
                "share": say_share(nbytes, total),
            }
        )
        at += width
    return {"parts": lines, "total": say_bytes(total)}


def _parts(nbytes: dict[str, int]) -> dict[str, float]:
    parts: dict[str, float] = {name: nbytes[name] for name in ("high", "mid", "low", "near")}
    return parts | {"overhead": sum(nbytes[name] for name in _OVERHEAD)}


def tiles(view: RankView) -> list[tuple[str, str, str]]:
    """The first figures to look at: name, value, and a word on it."""
    figures = view.body.get("figures")
    if not figures:
        return []
    last, before = _span(view.samples, SPANS["a minute"])
    prompt, cached = _grown(last, before, "prompt"), _cached(last, before)
    waiting = last["waiting"] if last else 0
    used = figures["units_total"] - figures["units_free"]
    return [
        ("tokens held", say_count(figures["tokens_held"]), f"{say_ratio(figures['ratio'])} smaller than in 16 bits"),
        (
            "bytes in use",
            say_bytes(figures["bytes_total"]),
            f"{say_share(used, figures['units_total'])} of the pool's units are taken",
        ),
        ("hit rate", say_share(cached, prompt), "of prompt tokens, the last minute"),
        ("running", say_count(last["running"] if last else 0), f"{waiting} more wait"),
        ("generated", say_rate(_rate(last, before, "output_now")), "tokens, the last minute"),
    ]


def chart_view(view: RankView) -> dict[str, Any]:
    """Tokens held, and what bf16 would hold in the same bytes, over time; both as lines of one scale."""
    samples = list(view.samples)
    if len(samples) < 2:
        return {"held": "", "raw": "", "table": [], "top": "0", "begin": "-"}
    begin, end = samples[0]["time"], samples[-1]["time"]
    raw = [_raw_tokens(sample) for sample in samples]
    top = max(1.0, *(sample["tokens_held"] for sample in samples), *raw)

    def line(values: Sequence[float]) -> str:
        points = zip(samples, values, strict=True)
        places = (
            (CHART_WIDTH * (s["time"] - begin) / (end - begin), CHART_HEIGHT * (1 - value / top)) for s, value in points
        )
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    every = max(1, len(samples) // 15)
    return {
        "held": line([sample["tokens_held"] for sample in samples]),
        "raw": line(raw),
        "top": say_count(top),
        "begin": say_seconds(end - begin),
        "table": [
            (
                say_seconds(end - sample["time"]),
                say_count(sample["tokens_held"]),
                say_count(fewer),
                say_bytes(_in_use(sample)),
            )
            for sample, fewer in list(zip(samples, raw, strict=True))[::-every]
        ],
    }


def rates_view(view: RankView) -> dict[str, Any]:
    """Rates over several spans, a line each."""
    spans = {name: _span(view.samples, seconds) for name, seconds in SPANS.items()}
    lines = [("hit rate", [say_share(_cached(*span), _grown(*span, "prompt")) for span in spans.values()])]
    lines += [(name, [say_rate(_rate(*span, key)) for span in spans.values()]) for name, key in _RATES.items()]
    return {"spans": list(spans), "lines": lines}


def _in_use(sample: dict[str, Any]) -> float:
    return sum(value for name, value in sample.items() if name.startswith("bytes_"))


def _raw_tokens(sample: dict[str, Any]) -> float:
    """Tokens that the model's dtype would hold in the bytes in use."""
    return sample["tokens_held"] * _in_use(sample) / sample["raw_bytes"] if sample["raw_bytes"] else 0.0


def _span(samples: Any, seconds: float) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The last sample, and the last one that is so many seconds older, or the first; None where there are not two."""
    if len(samples) < 2:
        return (samples[-1] if samples else None), None
    last = samples[-1]
    before = samples[0]
    for sample in reversed(samples):
        if last["time"] - sample["time"] >= seconds:
            before = sample
            break
    return last, before


def _grown(last: dict[str, Any] | None, before: dict[str, Any] | None, key: str) -> float:
    return max(last[key] - before[key], 0) if last and before else 0.0


def _cached(last: dict[str, Any] | None, before: dict[str, Any] | None) -> float:
    return sum(_grown(last, before, f"cached_{place}") for place in ("device", "host", "store"))


def _rate(last: dict[str, Any] | None, before: dict[str, Any] | None, key: str) -> float | None:
    if not last or not before or last["time"] <= before["time"]:
        return None
    return _grown(last, before, key) / (last["time"] - before["time"])
