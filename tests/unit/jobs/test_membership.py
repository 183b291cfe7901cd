"""What makes several jobs a group, from the journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.errors import Refused
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.membership import (
    copy_again,
    group_spec,
    kin_of,
    member_name,
    refuse_group,
    refuse_member,
    refuse_taken,
    why_no_instant,
)
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.state import State

TIME = {"begin_time": "2026-11-26T15:00:00.000000001Z"}
LATER = {"begin_time": "2026-11-26T15:00:00.000000002Z"}


def spec(number: int) -> CopySpec:
    name = member_name("g", number)
    return CopySpec(name=name, source=f"/dev/s {number}", destination=f"/dev/d{number}", group="g")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Have a group of two."""
    with Journal(tmp_path / "j") as journal:
        journal.define("g", group_spec([spec(1), spec(2)]))
        for number in (1, 2):
            journal.define(f"g.{number}", spec(number).as_json())
        yield journal


def begin(journal: Journal, name: str, begun: dict[str, str]) -> None:
    journal.note(name, "begun", begun)
    journal.move(name, State.BEGUN)


def test_group_has_an_instant_when_every_member_has_the_same_on_record(journal: Journal) -> None:
    names = ["g.1", "g.2"]
    begin(journal, "g.1", TIME)
    assert "g.2" in str(why_no_instant(names, journal.record))
    begin(journal, "g.2", TIME)
    assert why_no_instant(names, journal.record) is None
    assert "on record" in str(why_no_instant([*names, "g.3"], journal.record))
    journal.move("g.2", State.FAILED)
    assert why_no_instant(names, journal.record) == "g.2 is failed"


def test_members_of_two_instants_are_no_group(journal: Journal) -> None:
    begin(journal, "g.1", TIME)
    begin(journal, "g.2", LATER)
    assert why_no_instant(["g.1", "g.2"], journal.record) == (
        "its volumes have no common begin time"
    )


def test_name_of_a_member_is_taken(journal: Journal) -> None:
    for name in ("g.1", "g.3"):
        with pytest.raises(Refused, match="group g"):
            refuse_taken(name, journal)
    refuse_taken("g.x", journal)
    refuse_taken("h.1", journal)
    journal.define("h.2", {"source": "/dev/x"})
    with pytest.raises(Refused, match=r"would be called h\.2"):
        refuse_taken("h", journal, members=2)
    refuse_taken("h", journal, members=1)
    refuse_taken("g", journal, members=2)  # its own


def test_member_goes_with_its_group_and_a_group_has_no_map(journal: Journal) -> None:
    with pytest.raises(Refused, match=r"dmcopy resume g$"):
        refuse_member(journal.record("g.1"), "resume")
    with pytest.raises(Refused, match=r"dmcopy order g\.1$"):
        refuse_group(journal.record("g"), "order")
    refuse_member(journal.record("g"), "resume")
    refuse_group(journal.record("g.1"), "order")


def test_kin_of_a_job_are_its_group_and_all_members(journal: Journal) -> None:
    journal.define("other", {"source": "/dev/x"})
    records = {record.name: record for record in journal.records()}
    for job in ("g", "g.1", "g.2"):
        assert kin_of(job, records) == {"g", "g.1", "g.2"}
    assert kin_of("other", records) == {"other"}


def test_group_is_begun_anew_with_the_same_pairs(journal: Journal) -> None:
    record = journal.record("g")
    assert record is not None
    assert copy_again(record.spec) == (
        "dmcopy copy --pair '/dev/s 1' block:/dev/d1 --pair '/dev/s 2' block:/dev/d2"
    ).replace("block:", "")


def test_ended_member_is_remembered_while_its_group_goes_on(journal: Journal) -> None:
    begin(journal, "g.1", TIME)
    for state in (State.COPYING, State.COPIED, State.ENDED):
        journal.move("g.1", state)
    assert journal.forget_ended(keep=0, older_than=0.0, now=1e12) == []
    journal.move("g", State.FAILED)
    assert journal.forget_ended(keep=0, older_than=0.0, now=1e12) != []
