"""When what is copied is retired, and what happens when it cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dmcopy.core.extent import Extent
from dmcopy.errors import HoldLimitExceeded, PointInTimeLost
from dmcopy.jobs.retiring import Retiring
from dmcopy.stack.hold import Instant
from dmcopy.units import Sectors


class FakeRetire:
    def __init__(self) -> None:
        self.retired: Sequence[Extent] = ()
        self.held = 0.0005
        self.error: Exception | None = None
        self.calls = 0
        self.is_over = False

    def advance(self, retired: Sequence[Extent]) -> Instant | None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        if tuple(retired) == tuple(self.retired):
            return None
        self.retired = tuple(retired)
        return Instant(begin_ns=0, held=self.held)

    def end(self) -> None:
        self.is_over = True


class Case:
    def __init__(self) -> None:
        self.now = 100.0
        self.done = 0
        self.retire = FakeRetire()
        self.holds: list[tuple[str, float]] = []
        self.warned: list[str] = []
        self.retiring = Retiring(
            self.retire,
            self._record,
            lambda why, seconds: self.holds.append((why, seconds)),
            self.warned.append,
            clock=lambda: self.now,
        )

    def _record(self) -> list[Extent]:
        return [Extent(Sectors(0), Sectors(self.done))]

    def batch(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.done += 8
        self.retiring.durable()


@pytest.fixture
def case() -> Case:
    return Case()


def test_each_batch_is_retired_and_its_hold_is_told(case: Case) -> None:
    for _ in range(3):
        case.batch()
    assert case.holds == [("retire", 0.0005)] * 3
    assert case.retiring.retired == 24 * 512
    case.retiring.end()
    assert case.retire.is_over


def test_holds_take_a_hundredth_of_the_time_at_most(case: Case) -> None:
    case.retire.held = 0.1
    for _ in range(100):
        case.batch(0.5)
    assert len(case.holds) == 5, "50 seconds, ten between two of them"
    assert case.retiring.retired > 0


def test_swap_that_does_not_come_about_is_tried_again_later_and_told_once(case: Case) -> None:
    case.retire.error = HoldLimitExceeded("the I/O did not end")
    for _ in range(12):
        case.batch()
    assert case.retire.calls == 3
    assert len(case.warned) == 1
    case.retire.error = None
    case.batch(5.0)
    assert case.retiring.retired == 13 * 8 * 512


def test_lost_point_in_time_is_no_warning(case: Case) -> None:
    case.retire.error = PointInTimeLost("replaced")
    with pytest.raises(PointInTimeLost):
        case.batch()
    assert case.warned == []


def test_table_that_does_not_change_is_no_hold(case: Case) -> None:
    case.batch()
    case.retiring.durable()
    assert len(case.holds) == 1
