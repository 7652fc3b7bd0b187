"""Numbers as the page writes them."""

from __future__ import annotations

import math


def say_bytes(count: float) -> str:
    """Bytes with three digits and a unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def say_count(count: float) -> str:
    """A whole number with its thousands apart."""
    return f"{count:,.0f}"


def say_ratio(ratio: float | None) -> str:
    """How many times smaller than 16 bits."""
    return f"{ratio:.2f}x" if ratio else "-"


def say_share(part: float, whole: float) -> str:
    """A part in percent."""
    return f"{part / whole:.1%}" if whole else "-"


def say_seconds(seconds: float | None) -> str:
    """A time span."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def say_rate(rate: float | None) -> str:
    """So many a second."""
    if rate is None:
        return "-"
    return f"{rate:,.0f}/s" if rate >= 10 or not rate else f"{rate:.2f}/s"
