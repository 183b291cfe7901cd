"""Plan: done together or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from dmcopy.errors import Interrupted, LeftBehind
from dmcopy.stack.plan import Plan, Step, signals_deferred


class Note(Step):
    """A step that notes what happens to it."""

    def __init__(
        self,
        name: str,
        notes: list[str],
        *,
        fail: BaseException | None = None,
        stuck: int = 0,
    ) -> None:
        self._name = name
        self._notes = notes
        self._fail = fail
        self._stuck = stuck

    def __str__(self) -> str:
        return self._name

    def lines(self) -> Sequence[str]:
        return (f"run {self._name}",)

    def do(self) -> None:
        self._notes.append(f"do {self._name}")
        if self._fail is not None:
            raise self._fail

    def undo(self) -> None:
        self._notes.append(f"undo {self._name}")
        if self._stuck:
            self._stuck -= 1
            raise OSError("is stuck")


class Ready(Note):
    """A step that has something to get ready."""

    def get_ready(self) -> None:
        self._notes.append(f"ready {self._name}")

    def stand_down(self) -> None:
        self._notes.append(f"down {self._name}")


@pytest.fixture
def notes() -> list[str]:
    return []


def _plan(*prepare: Step, critical: Sequence[Step] = (), finish: Sequence[Step] = ()) -> Plan:
    return Plan(job="j", prepare=prepare, critical=critical, finish=finish)


def test_steps_are_done_in_order_and_intents_are_recorded_but_not_in_the_critical_part(
    notes: list[str],
) -> None:
    plan = _plan(
        Note("a", notes), Note("b", notes), critical=[Note("c", notes)], finish=[Note("d", notes)]
    )
    plan.run(lambda what: notes.append(f"record {what}"))
    assert notes == [
        *("record a", "do a", "record b", "do b", "record c", "do c", "record d", "do d")
    ]


def test_undo_goes_last_first(notes: list[str]) -> None:
    plan = _plan(Note("a", notes), Note("b", notes), critical=[Note("c", notes)])
    plan.run(lambda _: None)
    notes.clear()
    plan.undo()
    assert notes == ["undo c", "undo b", "undo a"]


def test_undo_twice_does_nothing_the_second_time(notes: list[str]) -> None:
    plan = _plan(Note("a", notes))
    plan.run(lambda _: None)
    plan.undo()
    notes.clear()
    plan.undo()
    assert notes == []


@pytest.mark.parametrize("where", ["prepare", "critical", "finish"])
@pytest.mark.parametrize("fail", [OSError("no"), Interrupted("ctrl-c"), KeyboardInterrupt()])
def test_failed_step_is_undone_with_all_before_it(
    notes: list[str], where: str, fail: BaseException
) -> None:
    bad = Note("bad", notes, fail=fail)
    parts: dict[str, list[Step]] = {"prepare": [], "critical": [], "finish": []}
    parts[where].append(bad)
    parts["finish"].append(Note("never", notes))
    plan = _plan(
        Note("a", notes), *parts["prepare"], critical=parts["critical"], finish=parts["finish"]
    )
    with pytest.raises(type(fail)):
        plan.run(lambda _: None)
    assert notes == ["do a", "do bad", "undo bad", "undo a"]


def test_journal_that_cannot_be_written_undoes_too(notes: list[str]) -> None:
    def record(what: str) -> None:
        if what == "b":
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _plan(Note("a", notes), Note("b", notes)).run(record)
    assert notes == ["do a", "undo a"]


def test_undo_goes_on_after_a_failure_and_names_everything_left(notes: list[str]) -> None:
    plan = _plan(Note("a", notes, stuck=1), Note("b", notes), Note("c", notes, stuck=1))
    plan.run(lambda _: None)
    notes.clear()
    with pytest.raises(LeftBehind) as caught:
        plan.undo()
    assert notes == ["undo c", "undo b", "undo a"]
    assert caught.value.left == ("c: is stuck", "a: is stuck")
    assert "dmcopy rescue j" in str(caught.value)
    notes.clear()
    plan.undo()  # what was left is tried again, in the right order
    assert notes == ["undo c", "undo a"]


def test_first_error_is_the_cause_of_what_was_left(notes: list[str]) -> None:
    plan = _plan(Note("a", notes, stuck=1), Note("b", notes, fail=OSError("first")))
    with pytest.raises(LeftBehind) as caught:
        plan.run(lambda _: None)
    assert str(caught.value.__cause__) == "first"


def test_signal_waits_until_the_undo_is_over(notes: list[str]) -> None:
    class Signals(Note):
        def undo(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().undo()

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        plan = _plan(Note("a", notes), Signals("b", notes))
        plan.run(lambda _: None)
        with pytest.raises(Interrupted):
            plan.undo()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert notes[-2:] == ["undo b", "undo a"]


def test_deferred_signals_are_delivered_afterwards() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with signals_deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_plan_is_shown_as_lines_that_can_be_pasted(notes: list[str]) -> None:
    plan = _plan(Note("a", notes), critical=[Note("b", notes)])
    assert plan.lines() == ("run a", "run b")
    assert notes == []


@contextmanager
def _around(notes: list[str], fail: str = "") -> Iterator[None]:
    notes.append("enter")
    if fail == "enter":
        raise OSError("cannot enter")
    yield
    notes.append("leave")
    if fail == "leave":
        raise OSError("was lost")


def test_critical_steps_get_ready_before_what_goes_around_them(notes: list[str]) -> None:
    plan = _plan(Note("a", notes), critical=[Ready("b", notes)], finish=[Note("c", notes)])
    plan.run(lambda _: None, lambda: _around(notes))
    assert notes == ["do a", "ready b", "enter", "do b", "leave", "down b", "do c"]
    plan.undo()
    assert notes[-3:] == ["undo c", "undo b", "undo a"]


@pytest.mark.parametrize(("fail", "done"), [("enter", []), ("leave", ["do b", "leave"])])
def test_what_goes_around_the_critical_steps_can_undo_them(
    notes: list[str], fail: str, done: list[str]
) -> None:
    plan = _plan(Note("a", notes), critical=[Ready("b", notes)])
    with pytest.raises(OSError, match=r"cannot enter|was lost"):
        plan.run(lambda _: None, lambda: _around(notes, fail))
    assert notes == ["do a", "ready b", "enter", *done, "undo b", "undo a"]
