"""Work between steps takes its share of the time and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leankv_sglang.observability.live.scheduler.slices import (
    MOST_SECONDS,
    PIECE_SECONDS,
    SHARE,
    PieceSize,
    Slices,
)


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def task(clock: Clock, pieces: int, seconds: float, done: list[int]) -> Iterator[None]:
    for i in range(pieces):
        clock.now += seconds
        done.append(i)
        yield


def test_a_busy_server_gives_a_part_of_its_time() -> None:
    clock, done = Clock(), list[int]()
    slices = Slices(clock)
    slices.add(task(clock, 10_000, PIECE_SECONDS, done))
    worked, longest = 0.0, 0.0
    for _ in range(1_000):
        clock.now += 0.01
        before = clock.now
        slices.between_steps()
        worked += clock.now - before
        longest = max(longest, clock.now - before)
    assert worked == pytest.approx(SHARE * 10.0, rel=0.1)
    assert longest <= MOST_SECONDS + PIECE_SECONDS + 1e-9
    assert done


def test_what_others_take_meanwhile_is_told_apart() -> None:
    clock, computing = Clock(), Clock()
    slices = Slices(clock, computing)

    def preempted() -> Iterator[None]:
        clock.now += 0.005
        computing.now += 0.0001
        yield

    slices.add(preempted())
    clock.now += 0.1
    slices.between_steps()
    assert slices.longest == pytest.approx(0.0001)
    assert slices.longest_clock == pytest.approx(0.005)


def test_a_piece_that_takes_too_long_is_paid_back() -> None:
    clock, done = Clock(), list[int]()
    slices = Slices(clock)
    slices.add(task(clock, 10, 0.01, done))
    clock.now += 0.1
    slices.between_steps()
    assert done == [0]
    for _ in range(9):
        clock.now += 0.1
        slices.between_steps()
    assert done == [0], "ten milliseconds are a hundredth of a second"
    clock.now += 0.2
    slices.between_steps()
    assert done == [0, 1]


def test_what_is_urgent_does_not_wait_for_a_large_tree() -> None:
    clock, tree, figures = Clock(), list[int](), list[int]()
    slices = Slices(clock)
    slices.add(task(clock, 1000, PIECE_SECONDS, tree))
    clock.now += 1.0
    slices.between_steps()
    assert 0 < len(tree) < 10
    slices.add(task(clock, 1, 0.0, figures), urgent=True)
    clock.now += 1.0
    slices.between_steps()
    assert figures == [0]
    assert len(tree) < 10


def test_an_idle_server_works_until_somebody_comes() -> None:
    clock, done = Clock(), list[int]()
    slices = Slices(clock)
    slices.add(task(clock, 10, 0.01, done))
    slices.while_idle(lambda: len(done) == 4)
    assert len(done) == 4
    slices.while_idle(lambda: False)
    assert len(done) == 10
    assert not slices


def test_tasks_come_one_after_another_and_a_failed_one_is_gone() -> None:
    clock, done = Clock(), list[int]()
    slices = Slices(clock)

    def fails() -> Iterator[None]:
        yield
        raise ValueError("no")

    slices.add(fails())
    slices.add(task(clock, 2, 0.0, done))
    with pytest.raises(ValueError, match="no"):
        slices.while_idle(lambda: False)
    slices.while_idle(lambda: False)
    assert done == [0, 1]


def test_pieces_grow_and_shrink_towards_their_time() -> None:
    clock = Clock()
    size = PieceSize(1, clock)
    for _ in range(30):
        size.begin()
        clock.now += size.size * 1e-6
        size.end()
    assert size.size == pytest.approx(PIECE_SECONDS / 1e-6, rel=0.05)
    for _ in range(30):
        size.begin()
        clock.now += 1.0
        size.end()
    assert size.size == 1
