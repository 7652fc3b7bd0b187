"""A server that hangs ends in time, sooner if it is told again, and not sooner by one signal that comes twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from leankv_patches import forced_end

LONG = 3600.0


class _Server:
    """What a :class:`forced_end.ForcedEnd` did to a server that does not end."""

    def __init__(self, patience: Callable[[int], float]) -> None:
        self.hurried, self.ended = threading.Event(), threading.Event()
        self.end = forced_end.ForcedEnd(patience, self.hurried.set, self.ended.set)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a test's length."""
    monkeypatch.setattr(forced_end, "ONE_SIGNAL", 0.2)


def test_nothing_ends_without_a_signal() -> None:
    server = _Server(lambda _: 0.0)
    server.end.tell(0)
    assert not server.ended.wait(0.3)
    server.end.tell(signal.SIGTERM)
    assert server.ended.wait(60)
    assert not server.hurried.is_set()


def test_answered_requests_leave_the_rest_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forced_end, "END_SECONDS", 0.1)
    server = _Server({signal.SIGINT: LONG}.__getitem__)
    server.end.tell(signal.SIGINT)
    assert not server.ended.wait(0.3)
    server.end.tell(0)
    assert server.ended.wait(60)


def test_a_second_signal_hurries_and_a_third_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forced_end, "HURRY_SECONDS", LONG)
    server = _Server(lambda _: LONG)
    for _ in range(3):
        server.end.tell(signal.SIGTERM)
    assert not server.hurried.wait(0.3)
    server.end.tell(signal.SIGTERM)
    assert server.hurried.wait(60)
    assert not server.ended.is_set()
    time.sleep(0.3)
    server.end.tell(signal.SIGINT)
    assert server.ended.wait(60)


def test_a_second_signal_is_enough_where_a_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forced_end, "HURRY_SECONDS", 0.1)
    server = _Server(lambda _: LONG)
    server.end.tell(signal.SIGTERM)
    time.sleep(0.3)
    server.end.tell(signal.SIGTERM)
    assert server.ended.wait(60)


def test_who_heard_of_a_signal_still_does() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        server = _Server(lambda _: 0.0)
        server.end.listen(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        assert server.ended.wait(60)
    finally:
        signal.signal(signal.SIGUSR1, before)
