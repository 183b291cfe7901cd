"""The journal's file: only what is whole, ours and of a known version is believed."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from dmcopy.core.extent import Extent
from dmcopy.errors import DmcopyError, JournalDamaged
from dmcopy.jobs import ledger_file
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.overview import overview, rescue
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Commander
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Sectors

_V1: Final = Path(__file__).parents[2] / "data" / "journal" / "v1.sqlite"
_NOBODY: Final = 65534


def _filled(path: Path) -> Path:
    with Journal(path) as journal:
        for name in ("a", "b", "c"):
            journal.define(name, {"source": f"/dev/{name}", "destination": "image:/x"})
            journal.intend(name, "create")
            journal.intend(name, "load")
            journal.may_leave(name, f"/f/{name}")
            journal.move(name, State.BEGUN)
            journal.set_facts(name, {"boot": name * 600})
            runs = [(Extent(Sectors(100 * n), Sectors(8)), f"{n:064x}") for n in range(10)]
            journal.commit(name, runs)
            journal.log(name, {"event": "hold", "seconds": 0.1})
        journal.retire("a")
        journal.lost("b", "gone")
        journal.move("b", State.FAILED)
        journal.set_setting("k", "v")
        journal.set_setting("l", "w")
    return path


def _all_of(journal: Journal) -> object:
    names = ["a", "b", "c", "nobody"]
    return (
        journal.records(),
        [journal.record(name) for name in names],
        [journal.done(name) for name in names],
        [journal.intents(name) for name in names],
        [journal.leftovers(name) for name in names],
        [journal.log_of(name) for name in names],
        [journal.setting(key) for key in ("k", "l", "nothing")],
    )


def _read(path: Path, *, read_only: bool = False) -> object:
    with Journal(path, create=False, read_only=read_only) as journal:
        return _all_of(journal)


def _sql(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A journal with something in each table, all of it in the file itself."""
    path = _filled(tmp_path_factory.mktemp("journal") / "j")
    assert [file.name for file in path.parent.iterdir()] == ["j"]
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    """A file of its own with the same."""
    file = tmp_path / "j"
    file.write_bytes(whole)
    return file


@pytest.mark.parametrize("seed", range(2))
def test_one_garbled_byte_is_refused_or_changes_nothing_that_is_read(
    tmp_path: Path, whole: bytes, seed: int
) -> None:
    path = tmp_path / "j"
    path.write_bytes(whole)
    expected = _read(path)
    chance = random.Random(seed)
    refused = []
    # Half of them in the file's header and its list of tables, where most has a meaning.
    for place in [chance.randrange(len(whole)) for _ in range(100)] + [
        chance.choice([chance.randrange(100), 4095 - chance.randrange(3000)]) for _ in range(100)
    ]:
        garbled = bytearray(whole)
        garbled[place] ^= chance.randrange(1, 256)
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(garbled)
        try:
            found = _read(path, read_only=bool(place % 2))
        except DmcopyError as exc:
            refused.append(str(exc))
        else:
            assert found == expected, place
    assert len(refused) > 50
    assert all(text.isprintable() for text in refused)


def test_journal_truncated_anywhere_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "j"
    for length in range(0, len(whole), 512):
        path.write_bytes(whole[:length])
        for read_only in (False, True):
            with pytest.raises(JournalDamaged, match=re.escape(str(path))):
                _read(path, read_only=read_only)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM job WHERE name='c'",
        "DELETE FROM job",
        "DELETE FROM done WHERE start=300",
        "DELETE FROM done WHERE job='a'",
        "DELETE FROM entry WHERE kind='leftover'",
        "DELETE FROM entry WHERE kind='event' AND job='b'",
        "DELETE FROM setting WHERE key='k'",
        "DELETE FROM setting",
        "DELETE FROM seal",
        "UPDATE done SET retired=0 WHERE job='a' AND start=0",
        "UPDATE done SET digest=NULL WHERE start=500",
        "UPDATE done SET job='d' WHERE job='c' AND start=0",
        "UPDATE job SET state='copying' WHERE name='b'",
        "UPDATE job SET lost=NULL WHERE name='b'",
        "UPDATE job SET created=created+1",
        "UPDATE entry SET value='\"/else\"' WHERE kind='leftover'",
        "UPDATE setting SET value='\"x\"' WHERE key='k'",
        "INSERT INTO done SELECT 'b', start+4, length, retired, digest, checksum FROM done"
        " WHERE job='a'",
    ],
)
def test_row_that_is_lost_or_changed_is_noticed(path: Path, statement: str) -> None:
    _sql(path, statement)
    with pytest.raises(JournalDamaged):
        _read(path)


def test_lost_job_is_not_taken_for_one_that_never_was(path: Path) -> None:
    _sql(path, "DELETE FROM job WHERE name='c'")
    with Journal(path) as journal:
        for ask in (journal.record, journal.state, journal.done, journal.leftovers):
            with pytest.raises(JournalDamaged, match="3 rows job were written"):
                ask("c")
        with pytest.raises(JournalDamaged):
            journal.define("c", {})


def test_garbled_page_is_found_when_the_file_is_opened(path: Path, whole: bytes) -> None:
    """Also one that nobody would read: the journal is refused before a job relies on it."""
    pages = len(whole) // 4096
    assert pages == 6  # the list of tables, and one for each of the five
    for page in range(pages):
        garbled = bytearray(whole)
        garbled[page * 4096 : page * 4096 + 8] = b"\xa5" * 8
        path.write_bytes(garbled)
        with pytest.raises(JournalDamaged):
            Journal(path)


def test_damage_is_noticed_before_anything_is_written_over_it(path: Path) -> None:
    _sql(path, "UPDATE done SET retired=0 WHERE job='a' AND start=0")
    with Journal(path) as journal:
        with pytest.raises(JournalDamaged):
            journal.retire("a")
        with pytest.raises(JournalDamaged):
            journal.commit("a", [(Extent(Sectors(5000), Sectors(8)), None)])
    _sql(path, "UPDATE job SET state='ended' WHERE name='a'")
    with Journal(path) as journal, pytest.raises(JournalDamaged):
        journal.define("a", {})


def test_damage_tells_what_and_where_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(JournalDamaged) as damaged:
        Journal(path)
    text = str(damaged.value)
    assert text.startswith(f"the journal {path} is damaged: file is not a database; move it away")
    assert "running copies are not harmed" in text
    assert "`dmcopy rescue` works without it" in text
    assert (damaged.value.exit_status, damaged.value.kind) == (1, "journal")
    assert path.read_bytes() == b"garbage" * 1000


def test_empty_file_and_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(JournalDamaged, match="it is empty"):
        Journal(tmp_path / "empty")
    with pytest.raises(JournalDamaged, match="it is not a file"):
        Journal(tmp_path / "folder")


def test_journal_in_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DmcopyError, match="cannot use the journal"):
        Journal(tmp_path / "file" / "j")
    for read_only in (False, True):
        with pytest.raises(DmcopyError, match="No such file"):
            Journal(tmp_path / "none", create=False, read_only=read_only)


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE foreigner (x)",),
        ("PRAGMA user_version=1",),
        ("PRAGMA user_version=1", "CREATE TABLE job (name TEXT PRIMARY KEY)"),
        ("PRAGMA user_version=2", "CREATE TABLE job (name TEXT PRIMARY KEY)"),
        ("PRAGMA user_version=2", "PRAGMA application_id=1684890480"),
    ],
)
def test_file_of_another_program_is_refused_and_stays_as_it_was(
    tmp_path: Path, statements: tuple[str, ...]
) -> None:
    path = tmp_path / "j"
    _sql(path, *statements)
    before = _schema(path)
    with pytest.raises(JournalDamaged, match=r"no journal of dmcopy|not those of dmcopy"):
        Journal(path)
    assert _schema(path) == before


def _schema(path: Path) -> list[object]:
    db = sqlite3.connect(path)
    rows: list[object] = db.execute("SELECT * FROM sqlite_schema").fetchall()
    db.close()
    return rows


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE job ADD COLUMN more TEXT",
        "DROP TABLE setting",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER INSERT ON done BEGIN DELETE FROM done; END",
    ],
)
def test_other_tables_than_ours_are_refused(path: Path, statement: str) -> None:
    _sql(path, statement)
    with pytest.raises(JournalDamaged, match="its tables are not those of dmcopy"):
        Journal(path)


def test_journal_of_a_later_version_is_refused(path: Path) -> None:
    _sql(path, "PRAGMA user_version=99")
    for read_only in (False, True):
        with pytest.raises(DmcopyError, match=r"version 99.*reads 1 and 2"):
            Journal(path, read_only=read_only)


@pytest.mark.parametrize("what", ["-wal", "-shm"])
@pytest.mark.parametrize("read_only", [False, True])
def test_garbage_beside_the_journal_is_not_believed(path: Path, what: str, read_only: bool) -> None:
    expected = _read(path)
    Path(f"{path}{what}").write_bytes(random.Random(1).randbytes(70_000))
    assert _read(path, read_only=read_only) == expected


def test_wal_garbled_anywhere_is_believed_up_to_there(tmp_path: Path) -> None:
    """A job with runs [0, n): whatever is left of the WAL gives one of these, whole."""
    source, path = tmp_path / "source", tmp_path / "j"
    with Journal(source) as journal:
        journal.define("a", {})
        journal.note("a", "begun", {})
        for number in range(1, 9):
            journal.commit("a", [(Extent(Sectors(0), Sectors(number)), str(number))])
        main, wal = source.read_bytes(), Path(f"{source}-wal").read_bytes()
    chance = random.Random(5)
    seen = set()
    for _ in range(60):
        for file in tmp_path.glob("j*"):
            file.unlink()
        garbled = bytearray(wal)
        garbled[chance.randrange(len(wal))] ^= 0xFF
        path.write_bytes(main)
        Path(f"{path}-wal").write_bytes(garbled)
        with Journal(path) as journal:
            runs = journal.done("a")
        assert len(runs) <= 1
        seen.add(int(runs[0].extent.length) if runs else 0)
        assert all(run.digest == str(run.extent.length) for run in runs)
    assert len(seen) > 3


def test_wal_without_its_journal_is_not_taken_for_that_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.define("a", {})
        path.rename(tmp_path / "moved")
        with pytest.raises(DmcopyError, match="j-wal without its journal"):
            Journal(path)
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").rename(f"{path}{end}.moved")
        with Journal(path) as new:
            assert new.records() == []
        journal.move("a", State.BEGUN)  # who runs is not harmed
        assert journal.state("a") is State.BEGUN


def test_path_with_any_character_is_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory&b#c%41 \udcff" / "j"
    with Journal(path) as journal:
        journal.define("a", {})
    assert path.stat().st_size > 0
    with Journal(path, read_only=True) as journal:
        assert journal.state("a") is State.DEFINED


def test_directories_are_for_root_alone(tmp_path: Path) -> None:
    with Journal(tmp_path / "state" / "deep" / "j"):
        assert (tmp_path / "state" / "deep").stat().st_mode & 0o777 == 0o700


# Where nothing can be written.


@pytest.fixture
def powerless(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Give what takes root's power to ignore permissions from this process, for the test."""
    me = os.geteuid()
    changed = [folder for folder in tmp_path.parents if folder.stat().st_mode & 0o011 != 0o011]
    modes = [folder.stat().st_mode for folder in changed]

    def drop() -> None:
        if me == 0:
            for folder in changed:
                folder.chmod(folder.stat().st_mode | 0o055)
            os.seteuid(_NOBODY)

    yield drop
    os.seteuid(me)
    tmp_path.chmod(0o700)
    for folder, mode in zip(changed, modes, strict=True):
        folder.chmod(mode)


def test_read_only_works_where_nothing_can_be_written(
    tmp_path: Path, path: Path, powerless: Callable[[], None]
) -> None:
    expected = _read(path)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    powerless()
    assert _read(path, read_only=True) == expected
    with Journal(path, read_only=True) as journal, pytest.raises(DmcopyError, match="readonly"):
        journal.set_setting("k", "x")
    with pytest.raises(DmcopyError, match="cannot use the journal"):
        Journal(path)


def test_read_only_says_when_the_wal_is_out_of_reach(
    tmp_path: Path, powerless: Callable[[], None]
) -> None:
    path = tmp_path / "here" / "j"
    path.parent.mkdir()
    with Journal(tmp_path / "j") as journal:
        journal.define("a", {})
        for end in ("", "-wal"):
            shutil.copy(f"{tmp_path}/j{end}", f"{path}{end}")
    for file in path.parent.iterdir():
        file.chmod(0o444)
    path.parent.chmod(0o555)
    tmp_path.chmod(0o755)
    powerless()
    with pytest.raises(DmcopyError, match=r"j-wal holds what was written last.*writable"):
        Journal(path, read_only=True)


def test_file_without_permission_is_said_so(
    tmp_path: Path, path: Path, powerless: Callable[[], None]
) -> None:
    path.chmod(0)
    tmp_path.chmod(0o755)
    powerless()
    for read_only in (False, True):
        with pytest.raises(DmcopyError, match="cannot use the journal") as refused:
            Journal(path, read_only=read_only)
        assert not isinstance(refused.value, JournalDamaged)


def test_read_only_sees_what_a_running_job_wrote_and_writes_nothing(path: Path) -> None:
    with Journal(path) as journal:
        journal.set_setting("k", "new")
        with Journal(path, read_only=True) as reader:
            assert reader.setting("k") == "new"
            with pytest.raises(DmcopyError, match="readonly"):
                reader.move("a", State.FAILED)
            journal.set_setting("k", "newer")
            assert reader.setting("k") == "newer"


# Version 1.


def _check_v1(journal: Journal) -> None:
    """Compare with what was written when tests/data/journal/v1.sqlite was made."""
    records = {record.name: record for record in journal.records()}
    assert list(records) == ["done", "lost", "killed", "new"]
    states = [record.state for record in records.values()]
    assert states == [State.ENDED, State.FAILED, State.COPYING, State.DEFINED]
    assert records["done"].created == 1790000001.5
    assert records["done"].ended is not None
    assert records["done"].ended["digest"] == "00ff"
    killed = records["killed"]
    assert killed.spec["destination"] == "image:/backup/killed.img"
    assert killed.begun is not None
    assert killed.begun["begin_time"] == "2026-09-21T14:14:00Z"
    assert killed.progress is not None
    assert killed.progress["bytes_done"] == 4194304
    assert (killed.facts, killed.lost, killed.ended) == (None, None, None)
    assert journal.intents("killed") == ["create dmcopy-killed-source", "load table of data"]
    files = ["/var/lib/dmcopy/cow/killed", "/backup/killed.img.part"]
    assert journal.leftovers("killed") == files
    assert all(journal.done(name) == [] for name in records)
    assert journal.log_of("killed") == []


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A journal that version 1 wrote."""
    path = tmp_path / "journal.sqlite"
    shutil.copy(_V1, path)
    return path


def test_version_1_is_brought_to_the_present_one(version_1: Path) -> None:
    with Journal(version_1) as journal:
        _check_v1(journal)
    with Journal(version_1) as journal:
        _check_v1(journal)
        journal.retire("killed")
        journal.log("killed", {"event": "hold"})
        journal.may_leave("killed", "/third")
        assert len(journal.leftovers("killed")) == 3


def test_job_of_version_1_that_was_killed_is_rescued(version_1: Path, tmp_path: Path) -> None:
    host = Host(dm=None, sysfs=Sysfs(), run=Commander(), places=Places(tmp_path, tmp_path / "run"))
    dead = [view for view in overview(host) if view.is_dead]
    assert [view.job for view in dead] == ["killed", "new"]
    assert [rescue(view, host).left for view in dead] == [(), ()]
    with Journal(version_1) as journal:
        assert journal.state("killed") is State.FAILED
        assert journal.leftovers("killed") == []


def test_read_only_reads_version_1_and_leaves_it(version_1: Path) -> None:
    before = version_1.read_bytes()
    with Journal(version_1, read_only=True) as journal:
        _check_v1(journal)
        with pytest.raises(DmcopyError, match="readonly"):
            journal.move("killed", State.FAILED)
    assert version_1.read_bytes() == before


def test_version_1_in_use_by_its_own_dmcopy_is_left_alone(version_1: Path) -> None:
    old = sqlite3.connect(version_1, isolation_level=None)
    old.execute("SELECT * FROM job").fetchall()
    with pytest.raises(DmcopyError, match=r"of version 1 and is being used.*have ended"):
        Journal(version_1, busy=0.3)
    old.execute("UPDATE job SET state='copied' WHERE name='killed'")  # it goes on
    with Journal(version_1, read_only=True) as journal:
        assert journal.state("killed") is State.COPIED
    old.close()
    with Journal(version_1) as journal:
        assert journal.state("killed") is State.COPIED


def test_version_1_stays_whole_when_the_change_is_cut_short(
    version_1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "_take_over", die)
        with pytest.raises(KeyboardInterrupt):
            Journal(version_1)
    with Journal(version_1) as journal:
        _check_v1(journal)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE job SET spec='{\"name' WHERE name='killed'",
        "UPDATE job SET progress=x'00' WHERE name='killed'",
        "UPDATE job SET state='odd' WHERE name='killed'",
        "DROP TABLE leftover",
        "ALTER TABLE job ADD COLUMN more",
    ],
)
def test_version_1_that_is_garbled_is_refused(version_1: Path, statement: str) -> None:
    _sql(version_1, statement)
    for read_only in (True, False):
        with pytest.raises(JournalDamaged):
            Journal(version_1, read_only=read_only)
    db = sqlite3.connect(version_1)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
