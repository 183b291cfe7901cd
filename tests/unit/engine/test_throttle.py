"""The job's own rate, with a clock that goes as the test says, and with real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.engine.throttle import HostCap, Throttle
from dmcopy.units import KIB, MIB, Bytes

SEGMENT = 4 * MIB


class Clock:
    """Time goes by in pauses only; `late` is how much too long each of them is."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 1000.0
        self.late = late
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds + self.late


def throttle(
    clock: Clock, rate: int | None, *, stop: Callable[[], bool] = lambda: False
) -> Throttle:
    limit = None if rate is None else Bytes(rate)
    return Throttle(limit, stop=stop, clock=clock, pause=clock.pause)


def moved_in(clock: Clock, pacer: Throttle, seconds: float, *, size: int = SEGMENT) -> int:
    """Move pieces that take no time themselves for *seconds*; give the bytes."""
    end, moved = clock.now + seconds, 0
    while True:
        pacer.wait(size)
        if clock.now >= end:
            return moved
        moved += size


def test_no_limit_waits_for_nothing_and_looks_at_no_clock() -> None:
    clock = Clock()
    pacer = throttle(clock, None)
    clock.now = float("nan")
    for _ in range(100):
        pacer.wait(SEGMENT)
    assert clock.pauses == []


@given(st.integers(64 * KIB, 4096 * MIB), st.floats(0, 0.05), st.integers(4 * KIB, 8 * MIB))
def test_average_is_the_rate_whatever_the_pieces_and_however_late_the_pauses(
    rate: int, late: float, size: int
) -> None:
    seconds = 50 * max(size / rate, 0.1)
    clock = Clock(late)
    pacer = throttle(clock, rate)
    size = max(size, rate // 500)  # fewer pieces, for the test's own sake
    moved = moved_in(clock, pacer, seconds, size=size)
    assert moved <= rate * seconds + size + 1
    assert moved >= rate * (seconds - late - 0.001) - size


def test_first_piece_goes_at_once_and_the_next_waits_for_it() -> None:
    clock = Clock()
    pacer = throttle(clock, MIB)
    pacer.wait(SEGMENT)
    assert clock.now == 1000.0
    pacer.wait(SEGMENT)
    assert clock.now == pytest.approx(1004.0)


def test_pause_of_hours_gives_a_tenth_of_a_second_of_credit() -> None:
    clock = Clock()
    pacer = throttle(clock, 100 * MIB)
    moved_in(clock, pacer, 1.0)
    clock.now += 7200
    assert moved_in(clock, pacer, 1.0) <= 110 * MIB + SEGMENT


def test_change_counts_from_then_on_for_a_debt_too() -> None:
    clock = Clock()
    pacer = throttle(clock, MIB)
    pacer.wait(SEGMENT)
    clock.now += 2  # half of it is paid
    pacer.rate = Bytes(2 * MIB)
    pacer.wait(SEGMENT)
    assert clock.now == pytest.approx(1003.0)
    assert pacer.rate == 2 * MIB


def test_no_limit_forgets_the_debt() -> None:
    clock = Clock()
    pacer = throttle(clock, 1)
    pacer.wait(SEGMENT)
    pacer.rate = None
    clock.now += 1
    pacer.rate = Bytes(100 * MIB)
    pacer.wait(SEGMENT)
    assert clock.pauses == []


def test_stop_ends_a_wait_without_an_error() -> None:
    clock = Clock()
    pacer = throttle(clock, 1, stop=lambda: clock.now > 1000.55)
    pacer.wait(SEGMENT)
    pacer.wait(SEGMENT)
    assert clock.now == pytest.approx(1000.6)


@pytest.mark.parametrize("rate", [None, 1024 * MIB])
def test_change_ends_a_wait_that_is_going_on_at_once(rate: int | None) -> None:
    pacer = Throttle(Bytes(1))
    pacer.wait(SEGMENT)
    ended: list[float] = []

    def read() -> None:
        pacer.wait(SEGMENT)
        ended.append(time.monotonic())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(0.12)
    assert ended == []
    changed = time.monotonic()
    pacer.rate = None if rate is None else Bytes(rate)
    reader.join(2)
    assert ended[0] - changed < 0.05


def test_wait_after_a_change_is_not_busy() -> None:
    end = time.monotonic() + 0.3
    looks: list[float] = []

    def clock() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    pacer = Throttle(Bytes(1), clock=clock, stop=lambda: time.monotonic() > end)
    pacer.wait(SEGMENT)
    pacer.rate = Bytes(2)
    pacer.wait(SEGMENT)
    assert len(looks) < 15


def test_job_under_the_hosts_cap_keeps_its_own_rate_too(tmp_path: Path) -> None:
    clock = Clock()
    cap = HostCap.open(tmp_path / "cap")
    pacer = Throttle(Bytes(MIB), cap=cap, clock=clock, pause=clock.pause)
    cap.set_rate(Bytes(20 * MIB))
    began = time.monotonic()
    for _ in range(6):
        pacer.wait(MIB)
    # 0.1 s of credit, then a MiB each 0.05 s
    assert 0.1 <= time.monotonic() - began < 0.5
    assert clock.now == pytest.approx(1005.0)
    cap.close()
