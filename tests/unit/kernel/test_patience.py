"""Tried again while it is refused, and no longer than it may be."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from dmcopy.kernel.patience import again


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "sleep", made.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [error] * times

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    return work


def test_it_is_tried_again_until_it_is_not_refused(clock: Clock) -> None:
    done = again(failing(3, BlockingIOError("busy")), on=OSError, seconds=1, pause=0.25)
    assert done == "done"
    assert clock.pauses == [0.25] * 3


def test_what_it_raised_last_is_raised_when_the_time_is_up(clock: Clock) -> None:
    with pytest.raises(OSError, match="busy"):
        again(failing(99, OSError("busy")), on=OSError, seconds=1, pause=0.25)
    assert clock.pauses == [0.25] * 4


def test_with_no_time_it_is_tried_once(clock: Clock) -> None:
    with pytest.raises(OSError, match="busy"):
        again(failing(1, OSError("busy")), on=OSError, seconds=0)
    assert clock.pauses == []


def test_what_does_not_pass_is_raised_at_once(clock: Clock) -> None:
    with pytest.raises(ValueError, match="never"):
        again(failing(1, ValueError("never")), on=OSError, seconds=1)
    with pytest.raises(OSError, match="gone"):
        again(
            failing(1, OSError("gone")),
            on=OSError,
            seconds=1,
            is_passing=lambda exc: "busy" in str(exc),
        )
    assert clock.pauses == []
