"""``dmcopy resume --all``, as a boot runs it; what runs a job is a stand-in."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dmcopy.agent import triggers
from dmcopy.cli import resume
from dmcopy.errors import EndedElsewhere, PointInTimeLost, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.overview import JobView
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Commander
from tests.unit.kernel.tree import Tree

JOB = "a-20260101-000000"
ALL = argparse.Namespace(all=True, verify=False, queue=False, json=False)


@pytest.fixture
def lost() -> set[str]:
    """Give the jobs whose process finds that their point in time is lost."""
    return set()


@pytest.fixture
def host(run: Commander, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: set[str]) -> Host:
    """Give a host with one interrupted job, whose process is refused when it is started."""
    places = Places(tmp_path / "state", tmp_path / "run", tmp_path / "etc")
    places.policies.mkdir(parents=True)
    (places.policies / "a.toml").write_text(
        'source = "/dev/mapper/a"\ndestination = { serial = "SER1" }\nwhen = { on = ["plug"] }\n'
    )
    with Journal(places.journal) as journal:
        journal.define(JOB, {"source": "/dev/mapper/a", "destination": "block:/dev/x"})
        record = journal.record(JOB)

    class Launcher:
        def __init__(self, run: Commander, *, asked: Path | None) -> None:
            """Run nothing."""

        def resume(self, job: str, *, verify: bool, queue: bool) -> None:
            if job in lost:
                with Journal(places.journal) as journal:
                    journal.move(job, State.FAILED)
                raise EndedElsewhere("point in time lost", PointInTimeLost.exit_status)
            raise EndedElsewhere(f"job {job} is being worked on", Refused.exit_status)

    view = JobView(job=JOB, state="defined", pid=None, remains=(), record=record)
    monkeypatch.setattr(resume, "Launcher", Launcher)
    monkeypatch.setattr(resume, "overview", lambda host: [view])
    return Host(dm=None, sysfs=Tree(tmp_path / "host").sysfs(), run=run, places=places)


def test_job_that_cannot_go_on_is_a_failure(host: Host) -> None:
    assert resume._resume_all(ALL, host) == Refused.exit_status


def test_job_that_was_lost_is_a_failure_although_it_has_ended(host: Host, lost: set[str]) -> None:
    lost.add(JOB)
    assert resume._resume_all(ALL, host) == PointInTimeLost.exit_status


def test_job_that_its_policy_was_quicker_with_is_none(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    with JobLock(host.places.locks, JOB):
        assert resume._resume_all(ALL, host) == 0
    with JobLock(triggers.locks(host.places), "a"):
        assert resume._resume_all(ALL, host) == 0
    with Journal(host.places.journal) as journal:
        journal.move(JOB, State.CANCELLED)
    assert resume._resume_all(ALL, host) == 0
    out, err = capsys.readouterr()
    assert (out.count(f"{JOB} goes on already: "), err) == (3, "")
