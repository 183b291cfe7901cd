"""The journal: what jobs were asked, intended and did."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dmcopy.jobs.journal as journal_module
from dmcopy.core.extent import Extent
from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.journal import Done, Journal
from dmcopy.jobs.state import State
from dmcopy.units import Sectors


def _extent(start: int, length: int) -> Extent:
    return Extent(Sectors(start), Sectors(length))


def _done(start: int, length: int, digest: str | None, retired: int) -> Done:
    return Done(_extent(start, length), digest, Sectors(retired))


def _moved(journal: Journal, name: str, *states: State) -> None:
    for state in states:
        journal.move(name, state)


def test_job_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.sqlite"
    with Journal(path) as journal:
        journal.define("a", {"source": "/dev/x"})
        journal.intend("a", "create it")
        journal.intend("a", "load it")
        journal.may_leave("a", "/tmp/file")
        journal.move("a", State.BEGUN)
        journal.note("a", "progress", {"bytes_done": 5})
        journal.set_facts("a", {"boot": "id", "devices": ["x"]})
    with Journal(path, create=False) as journal:
        (record,) = journal.records()
        assert record == journal.record("a")
        assert record.name == "a"
        assert record.state is State.BEGUN
        assert record.spec == {"source": "/dev/x"}
        assert record.progress == {"bytes_done": 5}
        assert record.facts == {"boot": "id", "devices": ["x"]}
        assert (record.ended, record.lost) == (None, None)
        assert journal.intents("a") == ["create it", "load it"]
        assert journal.leftovers("a") == ["/tmp/file"]


def test_job_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        assert (journal.record("b"), journal.state("b")) == (None, None)
        assert (journal.done("b"), journal.intents("b"), journal.log_of("b")) == ([], [], [])
        with pytest.raises(AssertionError, match="there is no job b"):
            journal.log("b", {})


class _Interrupted:
    """The database; Ctrl-C comes right after a statement that begins or ends a transaction."""

    def __init__(self, db: sqlite3.Connection, after: str) -> None:
        self._db = db
        self._after: str | None = after

    def __getattr__(self, name: str) -> Any:  # Any: whatever the connection has
        return getattr(self._db, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        cursor = self._db.execute(statement, *values)
        if statement == self._after:
            self._after = None
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize("after", ["BEGIN IMMEDIATE", "COMMIT", "BEGIN"])
def test_interrupt_between_two_steps_of_a_transaction_leaves_none_open(
    tmp_path: Path, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        ledger = journal._ledger
        monkeypatch.setattr(ledger, "_db", _Interrupted(ledger._db, after))
        with pytest.raises(KeyboardInterrupt):
            (journal.records if after == "BEGIN" else lambda: journal.move("a", State.BEGUN))()
        if after != "COMMIT":
            journal.move("a", State.BEGUN)
        journal.intend("a", "go on")
        assert journal.state("a") is State.BEGUN


def test_ended_job_is_forgotten_with_all_it_had_when_its_name_is_used_again(
    tmp_path: Path,
) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {"n": 1})
        journal.may_leave("a", "/x")
        journal.commit("a", [(_extent(0, 8), "d")])
        journal.log("a", {"event": "hold"})
        journal.move("a", State.FAILED)
        journal.define("a", {"n": 2})
        assert (journal.leftovers("a"), journal.done("a"), journal.log_of("a")) == ([], [], [])
        assert [record.spec for record in journal.records()] == [{"n": 2}]


@pytest.mark.parametrize(
    "states", [(), (State.BEGUN,), (State.BEGUN, State.PAUSED), (State.BEGUN, State.COPYING)]
)
def test_name_of_a_job_that_has_not_ended_is_refused(
    tmp_path: Path, states: tuple[State, ...]
) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {"n": 1})
        _moved(journal, "a", *states)
        with pytest.raises(Refused, match=r"dmcopy resume a; .*: dmcopy cancel a") as refused:
            journal.define("a", {"n": 2})
        assert "\n" not in str(refused.value)
        assert [record.spec for record in journal.records()] == [{"n": 1}]


def test_move_that_the_table_does_not_allow_is_our_bug(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        with pytest.raises(AssertionError, match="cannot go from defined to verified"):
            journal.move("a", State.VERIFIED)
        assert journal.state("a") is State.DEFINED


def test_job_can_be_asked_something_else(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {"n": 1})
        journal.set_spec("a", {"n": 2})
        record = journal.record("a")
        assert record is not None
        assert record.spec == {"n": 2}


def test_run_that_grows_is_one_row_with_the_digest_of_all_of_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        journal.commit("a", [(_extent(100, 50), None)])
        for length in range(8, 48, 8):
            journal.commit("a", [(_extent(0, length), f"of {length}")])
        assert journal.done("a") == [_done(0, 40, "of 40", 0), _done(100, 50, None, 0)]


def test_what_grew_after_it_was_retired_is_retired_only_at_its_beginning(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        journal.commit("a", [(_extent(0, 8), "x"), (_extent(100, 50), "y")])
        journal.retire("a")
        journal.commit("a", [(_extent(0, 24), "xx"), (_extent(200, 8), "z")])
        grown = [_done(0, 24, "xx", 8), _done(100, 50, "y", 50), _done(200, 8, "z", 0)]
        assert journal.done("a") == grown
        journal.retire("a")
        assert [run.retired for run in journal.done("a")] == [24, 50, 8]


@pytest.mark.parametrize(
    "rows",
    [
        [_extent(96, 8)],
        [_extent(104, 8)],
        [_extent(90, 200)],
        [_extent(100, 40)],
        [_extent(0, 101)],
        [_extent(0, 8), _extent(7, 1)],
    ],
)
def test_run_that_overlaps_another_or_shrinks_is_our_bug_and_changes_nothing(
    tmp_path: Path, rows: list[Extent]
) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        journal.commit("a", [(_extent(100, 50), "y")])
        with pytest.raises(AssertionError, match="job a"):
            journal.commit("a", [(extent, "new") for extent in rows])
        assert journal.done("a") == [_done(100, 50, "y", 0)]


def test_commit_is_all_or_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        with pytest.raises(AssertionError):
            journal.commit("a", [(_extent(0, 8), "x"), (_extent(4, 8), "y")])
        assert journal.done("a") == []


def test_jobs_do_not_see_each_others_rows(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for name in ("a", "b"):
            journal.define(name, {})
            journal.commit(name, [(_extent(0, 8), name)])
            journal.intend(name, name)
        journal.retire("a")
        assert journal.done("a") == [_done(0, 8, "a", 8)]
        assert journal.done("b") == [_done(0, 8, "b", 0)]
        assert journal.intents("b") == ["b"]


def _retire(journal: Journal) -> None:
    journal.commit("a", [(_extent(0, 8), "x")])
    journal.retire("a")


@pytest.mark.parametrize(
    ("change", "is_there"),
    [
        (_retire, lambda journal: journal.done("a") == [_done(0, 8, "x", 8)]),
        (
            lambda journal: journal.lost("a", "the COW device is full"),
            lambda journal: journal.record("a").lost == "the COW device is full",
        ),
        (
            lambda journal: journal.note("a", "begun", {"t": 1}),
            lambda journal: journal.record("a").begun == {"t": 1},
        ),
        (
            lambda journal: journal.move("a", State.FAILED),
            lambda journal: journal.state("a") is State.FAILED,
        ),
    ],
    ids=["retired", "lost", "begun", "final"],
)
def test_what_resume_must_not_get_wrong_stays_when_the_wal_is_lost(
    tmp_path: Path, change: Callable[[Journal], None], is_there: Callable[[Journal], bool]
) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        journal.move("a", State.BEGUN)
        assert (tmp_path / "j-wal").stat().st_size > 0
        change(journal)
        shutil.copy(tmp_path / "j", tmp_path / "without-wal")
        journal.note("a", "progress", {"bytes_done": 1})
        shutil.copy(tmp_path / "j", tmp_path / "later")
    with Journal(tmp_path / "without-wal") as journal:
        assert is_there(journal)
    with Journal(tmp_path / "later") as journal:  # what was in the WAL alone is lost with it
        record = journal.record("a")
        assert record is not None
        assert record.progress is None


def test_nothing_is_called_retired_while_a_reader_keeps_it_in_the_wal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", busy=0.2) as journal:
        journal.define("a", {})
        reader = sqlite3.connect(tmp_path / "j", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM job").fetchall()
        journal.commit("a", [(_extent(0, 8), "x")])
        with pytest.raises(DmcopyError, match="another program has been reading it"):
            journal.retire("a")
        reader.execute("ROLLBACK")
        reader.close()
        journal.retire("a")
        assert (tmp_path / "j-wal").stat().st_size == 0
        assert journal.done("a") == [_done(0, 8, "x", 8)]


def test_reading_and_writing_leave_no_transaction_open(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", busy=0.2) as one, Journal(tmp_path / "j", busy=0.2) as two:
        one.define("a", {})
        two.records()
        two.log_of("a")
        with pytest.raises(AssertionError):
            two.move("a", State.ENDED)
        one.note("a", "begun", {})


def test_first_reason_for_the_loss_stays(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        journal.lost("a", "first")
        journal.lost("a", "second")
        record = journal.record("a")
        assert record is not None
        assert record.lost == "first"


def test_last_thousand_events_and_intents_are_kept_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal_module._KEPT == 1000
    monkeypatch.setattr(journal_module, "_KEPT", 20)
    before = time.time()
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        for number in range(33):
            journal.log("a", {"event": "hold", "n": number})
            journal.intend("a", str(number))
        logged = journal.log_of("a")
        assert [entry.event["n"] for entry in logged] == list(range(13, 33))
        assert before <= logged[0].at <= logged[-1].at <= time.time()
        assert journal.intents("a") == [str(number) for number in range(13, 33)]


def test_last_history_is_kept_and_forgotten_with_the_job(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.define("job", {})
        assert journal.history("job") is None
        for number in range(3):
            journal.keep_history("job", {"samples": [number]})
        assert journal.history("job") == {"samples": [2]}
        _moved(journal, "job", State.FAILED)
        journal.define("job", {})
        assert journal.history("job") is None


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        journal.may_leave("a", "/tmp/\udcff")
        journal.forget_leftovers("a")
        journal.may_leave("a", "/tmp/\udcfe")
        assert journal.leftovers("a") == ["/tmp/\udcfe"]


def test_settings_are_set_and_unset(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal.setting("brake") is None
        journal.set_setting("brake", "10")
        journal.set_setting("other", "")
        journal.set_setting("brake", "20")
    with Journal(tmp_path / "j") as journal:
        assert (journal.setting("brake"), journal.setting("other")) == ("20", "")
        journal.set_setting("brake", None)
        journal.set_setting("never", None)
        assert (journal.setting("brake"), journal.setting("other")) == (None, "")


def _with_jobs(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that changed last at 100, 200 ... 600."""
    ends = {
        "old": State.CANCELLED,
        "left": State.FAILED,
        "paused": State.PAUSED,
        "failed": State.FAILED,
        "late": State.FAILED,
        "last": State.FAILED,
    }
    for number, (name, state) in enumerate(ends.items(), 1):
        now = number * 100.0
        monkeypatch.setattr("time.time", lambda now=now: now)
        journal.define(name, {})
        journal.commit(name, [(_extent(0, 8), name)])
        if name == "left":
            journal.may_leave(name, "/file")
        _moved(journal, name, State.BEGUN, state)


@pytest.mark.parametrize(
    ("keep", "older_than", "gone"),
    [
        (2, 1e9, {"old", "failed"}),
        (100, 240.0, {"old", "failed"}),
        (100, 1e9, set()),
        (0, 1e9, {"old", "failed", "late", "last"}),
        (1, 50.0, {"old", "failed", "late"}),
    ],
)
def test_old_jobs_are_forgotten_but_those_that_need_care(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: int,
    older_than: float,
    gone: set[str],
) -> None:
    with Journal(tmp_path / "j") as journal:
        _with_jobs(journal, monkeypatch)
        forgotten = journal.forget_ended(keep=keep, older_than=older_than, now=650.0)
        assert set(forgotten) == gone
        there = {record.name for record in journal.records()}
        assert there == {"old", "left", "paused", "failed", "late", "last"} - gone
        for name in there:
            assert journal.done(name) == [_done(0, 8, name, 0)]
        for name in gone:
            assert journal.done(name) == []


def test_full_disk_is_said_so_and_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {"n": 1})
        journal.commit("a", [(_extent(0, 8), "x")])
        pages = journal._ledger._db.execute("PRAGMA page_count").fetchone()[0]
        journal._ledger._db.execute(f"PRAGMA max_page_count={pages}")
        many = [(_extent(start, 8), "digest" * 10) for start in range(8, 8000, 8)]
        with pytest.raises(DmcopyError, match="no space left"):
            journal.commit("a", many)
        assert journal.done("a") == [_done(0, 8, "x", 0)]
        journal._ledger._db.execute("PRAGMA max_page_count=100000")
        journal.commit("a", many)
        journal.retire("a")
    with Journal(tmp_path / "j") as journal:
        assert len(journal.done("a")) == 1 + len(many)


def _work(path: Path, name: str) -> None:
    with Journal(path) as journal:
        journal.define(name, {})
        for number in range(1, 16):
            journal.commit(name, [(_extent(0, 8 * number), str(number))])
            journal.log(name, {"n": number})
            if number % 5 == 0:
                journal.retire(name)


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # whatever it is, pytest must not run twice
            os._exit(1)
        os._exit(0)
    return pid


@pytest.mark.forks
def test_processes_share_one_file_from_before_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "state" / "j"
    names = ["a", "b", "c", "d"]
    pids = [_fork(lambda name=name: _work(path, name)) for name in names]  # type: ignore[misc]  # the default is for the loop
    with Journal(path) as journal:
        for _ in range(20):
            journal.records()
    with Journal(path, read_only=True) as journal:
        journal.records()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    with Journal(path) as journal:
        for name in names:
            assert journal.done(name) == [_done(0, 120, "15", 120)]
            assert len(journal.log_of(name)) == 15
    assert [file.name for file in path.parent.iterdir()] == ["j"]


@pytest.mark.forks
@pytest.mark.parametrize("after", [1, 7, 40])
def test_what_was_committed_is_there_after_kill_9(tmp_path: Path, after: int) -> None:
    ready, tell = os.pipe()

    def work() -> None:
        with Journal(tmp_path / "j") as journal:
            journal.define("a", {})
            for number in range(1, 1_000_000):
                journal.commit("a", [(_extent(0, number), str(number))])
                os.write(tell, b"x")
                if number % 10 == 0:
                    journal.retire("a")

    pid = _fork(work)
    os.close(tell)
    seen = 0
    while seen < after:
        seen += len(os.read(ready, 1))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while os.read(ready, 1):
        seen += 1
    os.close(ready)
    with Journal(tmp_path / "j") as journal:
        (run,) = journal.done("a")
        assert run.extent.length in (seen, seen + 1)
        assert run.digest == str(run.extent.length)
        assert run.retired >= (seen - 1) // 10 * 10
