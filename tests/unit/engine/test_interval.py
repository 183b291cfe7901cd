"""When it is due, and how often it looks at the clock for that."""

from __future__ import annotations

from dmcopy.engine.interval import Interval


class Clock:
    """Time goes by as the test says; counts who looks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


def due_at(clock: Clock, interval: Interval, step: float, calls: int) -> list[int]:
    """Call it *calls* times, every *step* seconds; give the calls at which it was due."""
    found = []
    for number in range(calls):
        clock.now += step
        if interval.due():
            found.append(number)
    return found


def test_slow_work_is_due_on_time_and_looks_each_time() -> None:
    clock = Clock()
    interval = Interval(0.25, clock)
    assert due_at(clock, interval, 0.125, 8) == [1, 3, 5, 7]
    assert interval.elapsed == 0.25
    assert clock.looks == 1 + 8


def test_fast_work_looks_seldom_and_is_little_late() -> None:
    clock = Clock()
    interval = Interval(0.2, clock)
    found = due_at(clock, interval, 0.001, 1000)
    assert len(found) == 4, "each one up to 8 ms late"
    assert clock.looks <= 1 + 4 + 1000 / 8
    assert 0.2 <= interval.elapsed <= 0.208 + 1e-9


def test_work_that_becomes_slow_is_late_by_eight_calls_at_most() -> None:
    clock = Clock()
    interval = Interval(0.2, clock)
    due_at(clock, interval, 1e-6, 100)
    found = due_at(clock, interval, 10.0, 20)
    assert found[0] <= 7
    assert found == list(range(found[0], 20))


def test_clock_that_stands_still_or_goes_back_is_never_due() -> None:
    clock = Clock()
    interval = Interval(0.2, clock)
    assert due_at(clock, interval, 0.0, 50) == []
    assert due_at(clock, interval, -1.0, 50) == []


def test_no_interval_is_due_at_every_call() -> None:
    clock = Clock()
    assert due_at(clock, Interval(0.0, clock), 1.0, 3) == [0, 1, 2]


def test_work_that_is_slow_behind_a_fast_start_is_little_late() -> None:
    clock = Clock()
    interval = Interval(0.2, clock)
    assert due_at(clock, interval, 1e-6, 2) == []
    assert due_at(clock, interval, 0.8, 4)[0] <= 2
