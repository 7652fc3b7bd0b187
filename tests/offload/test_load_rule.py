"""Whether a prefix is worth bringing: by what was seen of the store and of prefills."""

from __future__ import annotations

import pytest

from leankv_sglang.offload.load_rule import LoadRule


def test_what_was_not_seen_is_tried_and_then_the_quicker_way_is_taken() -> None:
    rule = LoadRule("auto")
    assert rule.is_worth(1000, 1e12)
    rule.computed(1000, 1.0)
    assert rule.is_worth(1000, 1e12)
    rule.read(1_000_000, 0.1)
    assert rule.is_worth(1000, 10e6)
    assert not rule.is_worth(1000, 10.1e6)
    for _ in range(50):
        rule.read(1_000_000, 0.2)
    assert rule.bytes_per_second == pytest.approx(5e6, rel=0.01)
    assert not rule.is_worth(1000, 6e6)
    for _ in range(50):
        rule.computed(100, 1.0)
    assert rule.is_worth(1000, 49e6)


def test_one_slow_read_counts_by_the_time_it_took() -> None:
    rule = LoadRule("auto")
    rule.read(100, 1.0)
    rule.read(100, 100.0)
    assert rule.bytes_per_second == pytest.approx(1 / (0.8 / 100 + 0.2 / 1))


def test_always_and_never_look_at_nothing() -> None:
    for mode, worth in (("always", True), ("never", False)):
        rule = LoadRule(mode)
        assert rule.is_worth(1, 1) == worth
        rule.computed(1000, 1e-9)
        rule.read(1, 1e9)
        assert rule.is_worth(1, 1e12) == worth


def test_nothing_in_no_time_teaches_nothing() -> None:
    rule = LoadRule("auto")
    for amount, seconds in ((0, 1.0), (10, 0.0), (-1, 1.0)):
        rule.read(amount, seconds)
        rule.computed(amount, seconds)
    assert rule.bytes_per_second == rule.tokens_per_second == 0
