"""When policies with a calendar are due; the calendar here is "every N seconds"."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.agent.timers import LONGEST, Due, Timers
from dmcopy.errors import DmcopyError

START = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START
        self.asked = 0

    def elapse(self, calendar: str, after: float) -> float | None:
        self.asked += 1
        if calendar == "wrong":
            raise DmcopyError("no calendar")
        if calendar == "never":
            return None
        every = int(calendar)
        return (after // every + 1) * every


def _timers(tmp_path: Path, clock: Clock, *policies: Due) -> Timers:
    return Timers(lambda: policies, clock.elapse, tmp_path / "timers", clock=lambda: clock.now)


def test_new_policy_is_due_at_its_first_time_and_then_each_time_once(tmp_path: Path) -> None:
    clock = Clock()
    timers = _timers(tmp_path, clock, Due("a", "100"))
    assert timers.due() == []
    clock.now += 99
    assert timers.due() == []
    clock.now += 1
    assert timers.due() == ["a"]
    assert timers.due() == []
    clock.now += 100
    assert timers.due() == ["a"]


def test_expression_is_asked_for_once_a_time(tmp_path: Path) -> None:
    clock = Clock()
    timers = _timers(tmp_path, clock, Due("a", "100"))
    for _ in range(20):
        timers.due()
    assert clock.asked == 1
    assert timers.pause() == LONGEST
    clock.now += 95
    timers.due()
    assert timers.pause() == pytest.approx(5)


def test_what_was_missed_is_made_up_for_once(tmp_path: Path) -> None:
    clock = Clock()
    assert _timers(tmp_path, clock, Due("a", "100")).due() == []
    clock.now += 1234
    after_the_boot = _timers(tmp_path, clock, Due("a", "100"))
    assert after_the_boot.due() == ["a"]
    assert after_the_boot.due() == []


def test_clock_that_is_set_back_does_not_stop_a_policy(tmp_path: Path) -> None:
    clock = Clock()
    timers = _timers(tmp_path, clock, Due("a", "100"))
    timers.due()
    clock.now -= 500_000
    assert timers.due() == []
    clock.now += 100
    assert timers.due() == ["a"]


def test_one_that_is_wrong_is_in_no_other_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    timers = _timers(tmp_path, clock, Due("bad", "wrong"), Due("a", "100"), Due("b", "never"))
    timers.due()
    clock.now += 100
    assert timers.due() == ["a"]
    timers.due()
    assert caplog.messages == ["policy bad: no calendar"]


def test_policies_that_cannot_be_read_are_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    broken = [True]

    def policies() -> list[Due]:
        if broken:
            raise DmcopyError("not TOML")
        return [Due("a", "100")]

    timers = Timers(policies, clock.elapse, tmp_path, clock=lambda: clock.now)
    assert timers.due() == []
    broken.clear()
    assert timers.due() == []
    clock.now += 100
    assert timers.due() == ["a"]
