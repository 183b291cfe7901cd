"""What is on record of a job that somebody gives up, while another works on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.errors import PointInTimeLost, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.membership import group_spec
from dmcopy.jobs.overview import JobView, give_up, look_over, rescue
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Commander
from tests.unit.kernel.tree import Tree

WHY = PointInTimeLost("its table is another one")


@pytest.fixture
def host(run: Commander, tmp_path: Path) -> Host:
    places = Places(tmp_path / "state", tmp_path / "run", tmp_path / "etc")
    host = Host(dm=None, sysfs=Tree(tmp_path / "host").sysfs(), run=run, places=places)
    with Journal(places.journal) as journal:
        journal.define("a", {"source": "/dev/mapper/a", "destination": "image:/b"})
    return host


def test_job_that_another_works_on_is_not_said_to_be_lost(host: Host) -> None:
    with Journal(host.places.journal) as journal:
        with (
            JobLock(host.places.locks, "a"),
            pytest.raises(Refused, match="is being worked on by another"),
        ):
            give_up("a", host, journal, WHY)
        record = journal.record("a")
        assert record is not None
        assert (record.lost, record.state) == (None, State.DEFINED)


def test_job_that_another_has_ended_is_not_said_to_be_lost(host: Host) -> None:
    with Journal(host.places.journal) as journal:
        journal.move("a", State.CANCELLED)
        with pytest.raises(Refused, match="was worked on by another process meanwhile"):
            give_up("a", host, journal, WHY)
        record = journal.record("a")
        assert record is not None
        assert record.lost is None


def _look_while_it_ends(
    host: Host, monkeypatch: pytest.MonkeyPatch, end: State, *, brief: bool
) -> JobView:
    """Look at job a, which comes to its *end* when all records were read."""
    records = Journal.records

    def ends_right_after(journal: Journal) -> list[Record]:
        found = records(journal)
        with Journal(host.places.journal) as other:
            other.move("a", end)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "records", ends_right_after)
        (view,), unread = look_over(host, brief=brief)
    assert unread == ""
    return view


@pytest.mark.parametrize("brief", [True, False])
def test_job_that_ends_while_somebody_looks_is_not_taken_for_interrupted(
    host: Host, monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    view = _look_while_it_ends(host, monkeypatch, State.CANCELLED, brief=brief)
    assert (view.state, view.is_dead, view.can_resume) == ("cancelled", False, False)


def test_job_that_ended_since_it_was_looked_at_stays_as_it_ended(host: Host) -> None:
    (view,), _ = look_over(host)
    assert view.is_dead
    with Journal(host.places.journal) as journal:
        journal.move("a", State.CANCELLED)
        rescued = rescue(view, host)
        assert (rescued.done, rescued.left) == ((), ())
        record = journal.record("a")
        assert record is not None
        assert record.state is State.CANCELLED


def test_group_whose_members_ended_since_it_was_looked_at_is_ended(host: Host) -> None:
    names = ("g.1", "g.2")
    with Journal(host.places.journal) as journal:
        specs = [
            CopySpec(name=name, source="/dev/s", destination=f"image:/{name}", group="g")
            for name in names
        ]
        journal.define("g", group_spec(specs))
        for spec in specs:
            journal.define(spec.name, spec.as_json())
        for name in ("g", *names):
            for state in (State.BEGUN, State.COPYING, State.COPIED):
                journal.move(name, state)
        (view,) = look_over(host, only="g")[0]
        assert [member.is_dead for member in view.members] == [True, True]
        for name in names:
            journal.move(name, State.ENDED)
        rescued = rescue(view, host)
        assert (rescued.done, rescued.left) == ((), ())
        assert journal.state("g") is State.ENDED


def test_job_that_nobody_works_on_is_given_up(host: Host) -> None:
    with Journal(host.places.journal) as journal:
        error = give_up("a", host, journal, WHY)
        assert isinstance(error, PointInTimeLost)
        record = journal.record("a")
        assert record is not None
        assert (record.lost, record.state) == (str(WHY), State.FAILED)
