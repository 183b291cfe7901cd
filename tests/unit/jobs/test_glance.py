"""All jobs at one glance: right, in order, and in nobody's way."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.common import Context
from dmcopy.engine.throttle import HostCap
from dmcopy.jobs.glance import glance
from dmcopy.jobs.host import Host, open_host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.overview import overview
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from dmcopy.report.jobs_now import STATES
from dmcopy.units import Bytes
from tests.unit.fake_dm import FakeDm
from tests.unit.report import made_up
from tests.unit.report.made_up_jobs import held

SPEC = {"source": "/dev/mapper/d", "destination": "image:/x"}
BEGUN = {"begin_time": made_up.BEGIN_TIME}
PROGRESS = {
    "phase": "copy", "bytes_done": 50, "bytes_total": 200, "bytes_cow": 7, "bytes_zero": 3,
    "rate_bytes": 10.0, "eta_seconds": 15.0, "exceptions": 1, "cow_used_bytes": 5,
    "cow_total_bytes": 20, "cow_full": [1.0, 2.0, None], "cow_needed": [6.0, 8.0, 9.0],
    "first": "unsure", "bytes_retired": 40, "held": held(0.002),
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Host:
    places = Places(tmp_path / "state", tmp_path / "run")
    return open_host(places, dm=FakeDm(), load=False)


def _define(host: Host, name: str, *states: State, **spec: object) -> None:
    with Journal(host.places.journal) as journal:
        journal.define(name, SPEC | spec)
        for state in states:
            journal.move(name, state)
        if State.BEGUN in states:
            journal.note(name, "begun", BEGUN)
        if State.COPYING in states:
            journal.note(name, "progress", PROGRESS)
            journal.set_facts(name, {"provider": "splice"})


def test_running_job_has_the_figures_that_the_journal_was_last_told(host: Host) -> None:
    _define(host, "a", State.BEGUN, State.COPYING)
    with JobLock(host.places.locks, "a"):
        (job,) = glance(host).jobs
    assert (job.state, job.is_running, job.is_over) == ("copying", True, False)
    assert (job.done, job.total, job.rate, job.left) == (50, 200, 10.0, 15.0)
    assert (job.cow_used, job.cow_total, job.cow_needed) == (5, 20, 8.0)
    assert (job.cow_full, job.first, job.retired) == ((1.0, 2.0, None), "unsure", 40)
    assert job.begun == made_up.BEGIN
    assert job.held == PROGRESS["held"]


def test_rate_that_is_old_is_no_rate(host: Host) -> None:
    _define(host, "a", State.BEGUN, State.COPYING)
    with JobLock(host.places.locks, "a"):
        (job,) = glance(host, now=2e9 * 2).jobs
    assert (job.done, job.rate, job.left, job.cow_full, job.first) == (50, None, None, None, None)


def test_interrupted_job_says_how_to_go_on_and_one_that_cannot_says_why(host: Host) -> None:
    _define(host, "a", State.BEGUN, State.COPYING)
    _define(host, "b", State.BEGUN, State.COPYING)
    _define(host, "c")
    with Journal(host.places.journal) as journal:
        journal.lost("b", "somebody wrote")
    a, b, c = glance(host).jobs
    assert (a.state, a.can_resume) == ("interrupted", True)
    assert a.way_on == "go on: dmcopy resume a; give it up: dmcopy cancel a"
    assert (b.state, b.can_resume, a.rate) == ("dead", False, None)
    assert b.way_on == "cannot go on (somebody wrote); mend: dmcopy rescue b"
    assert c.way_on.startswith("cannot go on (it was interrupted before its begin time")


def test_ended_job_has_done_all_whatever_its_last_progress_said(host: Host) -> None:
    _define(host, "a", State.BEGUN, State.COPYING, State.COPIED, State.ENDED)
    with Journal(host.places.journal) as journal:
        journal.note("a", "ended", made_up.ended(held=held(0.1, 0.2), bytes_retired=9))
    (job,) = glance(host).jobs
    assert (job.state, job.is_over, job.took, job.exit_status) == ("ended", True, 149.2, 0)
    assert job.done == job.total == made_up.ended()["bytes_total"]
    assert (job.verified, job.rate, job.retired) == (True, None, 9)
    assert job.held is not None
    assert job.held["count"] == 2


def test_running_first_then_what_needs_a_person_then_the_last_that_ended(host: Host) -> None:
    whole = (State.BEGUN, State.COPYING, State.COPIED, State.ENDED)
    for name in ("old", "new"):
        _define(host, name, *whole)
    _define(host, "broken", State.BEGUN, State.COPYING)
    _define(host, "g", State.BEGUN, State.COPYING, members=["g.1", "g.2"])
    _define(host, "g.1", State.BEGUN, State.COPYING, group="g")
    _define(host, "g.2", State.BEGUN, State.COPYING, group="g")
    with JobLock(host.places.locks, "g"):
        jobs = glance(host).jobs
    assert [job.job for job in jobs] == ["g", "g.1", "g.2", "broken", "new", "old"]
    assert [job.is_running for job in jobs] == [True, True, True, False, False, False]
    assert [job.is_group for job in jobs[:3]] == [True, False, False]


def test_host_without_jobs_stays_as_it_is(host: Host, tmp_path: Path) -> None:
    now = glance(host)
    assert (now.jobs, now.cap, now.unread) == ((), None, "")
    assert list(tmp_path.iterdir()) == []


def test_cap_of_the_host_is_told_and_what_is_no_cap_is_not(host: Host, tmp_path: Path) -> None:
    cap = HostCap.open(host.places.cap)
    assert glance(host).cap is None
    cap.set_rate(Bytes(12345))
    cap.close()
    assert glance(host).cap == 12345
    for content in (b"", b"x" * 40, b"\0" * 40, b"short"):
        host.places.cap.write_bytes(content)
        assert glance(host).cap is None


def test_journal_that_cannot_be_read_is_said(host: Host) -> None:
    host.places.journal.parent.mkdir(parents=True)
    host.places.journal.write_bytes(b"")
    assert "it is empty" in glance(host).unread


def test_glance_opens_nothing_but_the_journal_locks_and_cap(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        _define(host, name, State.BEGUN, State.COPYING)
    image = tmp_path / "partial"
    image.touch()
    with Journal(host.places.journal) as journal:
        journal.may_leave("a", str(image))
    opened: list[str] = []
    really: Any = os.open  # Any: os.open has many forms

    def noted(path: Any, *more: Any, **most: Any) -> int:  # Any: the same
        opened.append(os.fsdecode(path))
        return int(really(path, *more, **most))

    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(builtins, "open", None)
    with JobLock(host.places.locks, "a"):
        opened.clear()
        assert len(glance(host).jobs) == 2
        assert set(opened) <= {str(host.places.locks / n) for n in "ab"} | {str(host.places.cap)}
        opened.clear()
        monkeypatch.undo()
        monkeypatch.setattr(os, "open", noted)
        assert overview(host, only="a")[0].files == (str(image),)
    assert str(image) in opened  # as the overview does, which is why it is not used here


def test_brief_look_loads_no_module(tmp_path: Path) -> None:
    # the fixture of all unit tests lets a program that is started fail the test
    context = Context(places=Places(tmp_path / "state", tmp_path / "run"))
    assert glance(context.host(load=False)).unread == ""


def test_each_state_of_a_job_is_one_that_is_counted() -> None:
    assert set(State) <= set(STATES)
