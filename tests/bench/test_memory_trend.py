"""What a soak says of memory."""

from __future__ import annotations

from math import isnan

from bench.common.memory import Trend


def trend(*mib: float) -> Trend:
    """A sample a minute."""
    return Trend([60.0 * i for i in range(len(mib))], list(mib))


def test_a_sawtooth_is_flat_and_a_slope_is_not() -> None:
    tooth = [1400.0, 1500.0, 1600.0] * 10
    assert trend(*tooth).growth(360) == 0
    assert trend(*[mib + 10 * i for i, mib in enumerate(tooth)]).growth(360) > 100


def test_five_minutes_a_row() -> None:
    assert trend(1, 2, 3, 4, 9, 5, 6).rows() == [
        {"from minute": 0.0, "median MiB": 3, "at most MiB": 9},
        {"from minute": 5.0, "median MiB": 5.5, "at most MiB": 6},
    ]


def test_too_short_a_run_says_nothing_of_growth() -> None:
    assert isnan(trend(1, 2).growth(300))
    assert trend().rows() == []
