"""The journal: what jobs were asked, intended and did."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock, holder
from dmcopy.jobs.state import MOVES, State, is_final


def test_job_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.sqlite"
    with Journal(path) as journal:
        journal.define("a", {"source": "/dev/x"})
        journal.intend("a", "create it")
        journal.may_leave("a", "/tmp/file")
        journal.move("a", State.BEGUN)
        journal.note("a", "progress", {"bytes_done": 5})
    with Journal(path, create=False) as journal:
        (record,) = journal.records()
        assert record.name == "a"
        assert record.state is State.BEGUN
        assert record.spec == {"source": "/dev/x"}
        assert record.progress == {"bytes_done": 5}
        assert record.ended is None
        assert journal.intents("a") == ["create it"]
        assert journal.leftovers("a") == ["/tmp/file"]


def test_defining_a_job_again_forgets_the_old_one_and_its_files(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {"n": 1})
        journal.may_leave("a", "/x")
        journal.define("a", {"n": 2})
        assert journal.leftovers("a") == []
        assert [record.spec for record in journal.records()] == [{"n": 2}]


def test_move_that_the_table_does_not_allow_is_our_bug(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        with pytest.raises(AssertionError):
            journal.move("a", State.VERIFIED)


def test_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(DmcopyError, match=r"version 99.*reads 1"):
        Journal(path)


def test_garbled_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(DmcopyError, match="cannot use the journal"):
        Journal(path)


def test_journal_in_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DmcopyError, match="cannot use the journal"):
        Journal(tmp_path / "file" / "j")


def test_every_state_leads_to_an_end() -> None:
    for state in State:
        reached, waiting = {state}, [state]
        while waiting:
            new = MOVES[waiting.pop()] - reached
            reached |= new
            waiting += new
        assert any(is_final(end) for end in reached)


def test_lock_is_held_by_one_process_and_says_by_whom(tmp_path: Path) -> None:
    with JobLock(tmp_path, "a"):
        pid = holder(tmp_path, "a")
        with pytest.raises(Refused, match=f"pid {pid}"), JobLock(tmp_path, "a"):
            pass
    assert holder(tmp_path, "a") is None
    with JobLock(tmp_path, "a"):
        pass


def test_nobody_holds_a_lock_that_never_was(tmp_path: Path) -> None:
    assert holder(tmp_path / "none", "a") is None
