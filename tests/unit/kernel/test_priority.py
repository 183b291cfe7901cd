"""First in line for a moment, and an ordinary process before and after."""

from __future__ import annotations

import os

import pytest

from dmcopy.kernel.priority import first_in_line, step_back, step_up


def test_thread_is_real_time_only_within_the_block() -> None:
    before = os.sched_getscheduler(0)
    with first_in_line():
        within = os.sched_getscheduler(0)
    assert within in (os.SCHED_FIFO, before), "refused, where it may not be"
    assert os.sched_getscheduler(0) == before


def test_it_goes_on_without_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, policy: int, parameter: os.sched_param) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with first_in_line():
        pass


def test_error_goes_through_and_the_thread_is_ordinary_again() -> None:
    before = os.sched_getscheduler(0)
    with pytest.raises(ZeroDivisionError), first_in_line():
        raise ZeroDivisionError
    assert os.sched_getscheduler(0) == before


def test_copy_gives_way_and_its_watchers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def nice(by: int) -> int:
        now[0] += by
        return now[0]

    monkeypatch.setattr(os, "nice", nice)
    monkeypatch.setattr(os, "setpriority", lambda _which, _who, value: now.__setitem__(0, value))
    step_back()
    assert now == [5]
    step_back()
    assert now == [5], "not further each time"
    step_up()
    assert now == [0]
    now[0] = -3
    step_up()
    assert now == [-3], "whoever was started with more keeps it"
    now[0] = 15
    step_back()
    assert now == [15]
