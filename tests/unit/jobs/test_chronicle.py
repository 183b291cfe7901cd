"""The history of a running job: what is counted when, and when it is kept."""

from __future__ import annotations

import pytest

from dmcopy.core.forecast import Band, First, Outlook
from dmcopy.core.history import History
from dmcopy.jobs.chronicle import Chronicle, Standing
from dmcopy.kernel.diskstat import IoTimes
from dmcopy.units import Bytes, Sectors


class Case:
    def __init__(self, begin: float | None = None) -> None:
        self.now = 1000.0
        self.times = IoTimes(10, Sectors(80), 50)
        self.kept = 0
        self.history = History(Sectors(80000), Sectors(8000))
        self.chronicle = Chronicle(
            self.history, lambda: self.times, self._keep, begin=begin, clock=lambda: self.now
        )

    def _keep(self, history: History) -> None:
        assert history is self.history
        self.kept += 1

    def write(self, count: int, milliseconds: int) -> None:
        self.times = IoTimes(
            self.times.writes + count, Sectors(0), self.times.milliseconds + milliseconds
        )

    def tick(self, seconds: float, *, outlook: Outlook | None = None, last: bool = False) -> None:
        self.now += seconds
        now = Standing("copy", Bytes(512), Bytes(0), (Bytes(1), Bytes(2)), outlook)
        self.chronicle.tick(now, last=last)


def test_what_was_written_before_the_begin_time_is_told_apart() -> None:
    case = Case()
    case.chronicle.held("begin", 0.001)
    case.tick(1.0)
    case.write(20, 100)
    case.now = 1002.0
    case.chronicle.begun(1001.5)
    case.write(5, 500)
    case.tick(0.5)
    before, copy = case.history.samples
    assert (before.at, before.phase, before.writes, before.write_seconds) == (
        0.0,
        "before",
        20,
        0.1,
    )
    assert (copy.at, copy.phase, copy.writes, copy.write_seconds) == (1.0, "copy", 5, 0.5)
    assert copy.span == pytest.approx(1.0)
    (hold,) = case.history.holds
    assert (hold.at, hold.reason, hold.seconds) == (-1.5, "begin", 0.001)


def test_job_that_goes_on_has_the_begin_time_that_it_had() -> None:
    case = Case(begin=400.0)
    case.chronicle.begun(999.0)
    case.tick(1.0)
    case.chronicle.copied([(8000, 8000, 16)])
    assert case.history.samples[0].at == 601.0
    assert case.history.cells[1] == (601.0, 8000, 16)


def test_forecast_is_told_as_times() -> None:
    case = Case(begin=1000.0)
    outlook = Outlook(
        full=Band(1.0, float("inf"), float("inf")), done=Band(5.0, 7.0, 9.0), needed=None,
        fill_rate=0.0, first=First.DONE,
    )  # fmt: skip
    case.tick(10.0, outlook=outlook)
    (sample,) = case.history.samples
    assert (sample.done_at, sample.full_at) == (17.0, None)
    assert (sample.cow_used, sample.cow_total) == (1, 2)


def test_it_is_looked_at_less_often_in_a_long_copy_and_kept_now_and_then() -> None:
    case = Case(begin=1000.0)
    for _ in range(1000):
        case.tick(0.1)
    assert 160 <= len(case.history.samples) <= 200, "100 short ones, then one a second"
    assert 9 <= case.kept <= 10
    case.tick(0.0, last=True)
    assert 10 <= case.kept <= 11


def test_device_without_counters_has_a_history_all_the_same() -> None:
    history = History(Sectors(8), Sectors(8))
    now = [5.0]
    chronicle = Chronicle(history, lambda: None, lambda _: None, clock=lambda: now[0])
    chronicle.begun(5.0)
    now[0] = 8.0
    chronicle.tick(Standing("copy", Bytes(0), Bytes(0), None, None))
    assert [sample.writes for sample in history.samples] == [0, 0]
