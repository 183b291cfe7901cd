"""The journal's file: made, opened, checked, brought to the present version.

A file is ours when it has our application id, our version, exactly our tables, and passes
SQLite's check of every page; anything else is refused whole.  It is made under another name
and linked to its own when it is complete, so that an empty file is always a damaged one.

A WAL beside it that is garbled from some point on is believed up to there, as after a loss of
power: it is an older state of the same file, and what must not get lost is never in it alone
(`Ledger.settle`).
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from dmcopy.errors import DmcopyError, JournalDamaged
from dmcopy.jobs.ledger import TABLES, Ledger, Row, Tally, errors, said
from dmcopy.jobs.state import State
from dmcopy.kernel.whole_file import sync_directory

VERSION: Final = 2
_OLD: Final = 1
_APPLICATION: Final = 0x646D6370  # "dmcp", in the file's header from version 2 on

_SCHEMA: Final = """
CREATE TABLE seal (         -- the tallies of the tables whose rows nobody owns
    part        TEXT PRIMARY KEY NOT NULL,   -- job, setting
    rows        INTEGER NOT NULL,
    sum         TEXT NOT NULL,
    checksum    TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE job (
    name        TEXT PRIMARY KEY NOT NULL,
    spec        TEXT NOT NULL,      -- JSON: CopySpec
    state       TEXT NOT NULL,
    created     REAL NOT NULL,      -- seconds since 1970, as all times here
    changed     REAL NOT NULL,
    begun       TEXT,               -- JSON: the event
    progress    TEXT,               -- JSON: the last such event
    ended       TEXT,               -- JSON: the event
    facts       TEXT,               -- JSON: what resume needs
    lost        TEXT,               -- why there is no point in time any more
    parts       TEXT NOT NULL,      -- JSON: the tallies of its rows below
    checksum    TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE done (         -- what is durable at the destination; one row a run
    job         TEXT NOT NULL,
    start       INTEGER NOT NULL,   -- sectors, as length and retired
    length      INTEGER NOT NULL,
    retired     INTEGER NOT NULL,   -- from the start
    digest      TEXT,               -- of the whole run
    checksum    TEXT NOT NULL,
    PRIMARY KEY (job, start)
) WITHOUT ROWID;
CREATE TABLE entry (
    job         TEXT NOT NULL,
    kind        TEXT NOT NULL,      -- intent, leftover (a path), event
    seq         INTEGER NOT NULL,
    at          REAL NOT NULL,
    value       TEXT NOT NULL,      -- JSON: paths are not always UTF-8
    checksum    TEXT NOT NULL,
    PRIMARY KEY (job, kind, seq)
) WITHOUT ROWID;
CREATE TABLE setting (
    key         TEXT PRIMARY KEY NOT NULL,
    value       TEXT NOT NULL,      -- JSON: a string
    checksum    TEXT NOT NULL
) WITHOUT ROWID;
"""

# What version 1 made, to know its files by, word for word.
_SCHEMA_1: Final = """
CREATE TABLE job (
    name        TEXT PRIMARY KEY,
    spec        TEXT NOT NULL,   -- JSON: CopySpec
    state       TEXT NOT NULL,
    created     REAL NOT NULL,   -- seconds since 1970, as all times here
    changed     REAL NOT NULL,
    begun       TEXT,            -- JSON: the event
    progress    TEXT,            -- JSON: the last such event
    ended       TEXT             -- JSON: the event
);
CREATE TABLE intent (
    job         TEXT NOT NULL REFERENCES job(name) ON DELETE CASCADE,
    at          REAL NOT NULL,
    what        TEXT NOT NULL
);
CREATE TABLE leftover (   -- files that rescue removes when the job is dead
    job         TEXT NOT NULL REFERENCES job(name) ON DELETE CASCADE,
    path        TEXT NOT NULL
);
"""


def open_ledger(path: Path, *, create: bool, read_only: bool, busy: float) -> Ledger:
    """Open the file, and make it where *create* says so.

    *read_only* leaves the file as it is, even its version.  Raises `JournalDamaged`, and
    `DmcopyError` for a file of a later version, in use by an earlier one, or out of reach.
    """
    try:
        if create and not read_only:
            _make(path)
        _look(path)
    except OSError as exc:
        raise DmcopyError(f"cannot use the journal {path}: {exc.strerror}") from exc
    with errors(path, "use"):
        db = _for_reading(path, busy) if read_only else _for_writing(path, busy)
        try:
            _check(db, path, _SCHEMA)
            if not read_only:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
            ledger = Ledger(db, path, busy=busy)
            for part in ("job", "setting"):
                ledger.sealed(part)
        except BaseException:
            db.close()
            raise
    return ledger


def _make(path: Path) -> None:
    """Make the file unless it is there; durable, with its directories, when this returns."""
    if path.exists():
        return
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)
    if _has_wal(path) and not path.exists():
        # SQLite would put what it holds into the new file.
        raise DmcopyError(
            f"there is {path}-wal without its journal {path}; put that back, or move "
            f"{path}-wal and {path}-shm away too"
        )
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    try:
        with errors(path, "make"), closing(_connect(new, "mode=rwc", 0.0)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN EXCLUSIVE")
            _fill(db, path)
            db.execute("COMMIT")
        try:
            os.link(new, path)
        except FileExistsError:
            return  # another process was faster
        sync_directory(path.parent)
    finally:
        new.unlink(missing_ok=True)


def _fill(db: sqlite3.Connection, path: Path) -> Ledger:
    """Make the tables of an empty database; the caller has a transaction open."""
    for statement in _statements(_SCHEMA):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={_APPLICATION}")
    db.execute(f"PRAGMA user_version={VERSION}")
    ledger = Ledger(db, path, busy=0.0)
    for part in ("job", "setting"):
        ledger.seal(part, Tally())
    return ledger


def _look(path: Path) -> None:
    """Refuse what SQLite would take for a new file, or has no clear words for."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise JournalDamaged(str(path), "it is not a file")
    if about.st_size == 0:
        raise JournalDamaged(str(path), "it is empty")


def _for_writing(path: Path, busy: float) -> sqlite3.Connection:
    deadline = time.monotonic() + busy
    while True:
        db = _connect(path, "mode=rw", busy)
        try:
            if _version(db, path) == VERSION:
                return db
            alone = _has_alone(db)
            if alone:
                _migrate(db, path)
        except BaseException:
            db.close()
            raise
        db.close()  # for if two processes want it alone, one must let go
        if alone:
            continue
        if time.monotonic() >= deadline:
            raise DmcopyError(
                f"the journal {path} is of version {_OLD} and is being used by a dmcopy of that "
                "version; wait until its copies have ended"
            )
        time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 (no secret)


def _has_alone(db: sqlite3.Connection) -> bool:
    """Take the file out of WAL mode, which works only while no other process has it open."""
    try:
        row = db.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return bool(row[0] == "delete")


def _for_reading(path: Path, busy: float) -> sqlite3.Connection:
    db = _readable(path, busy)
    memory: sqlite3.Connection | None = None
    try:
        if _version(db, path) == VERSION:
            return db
        memory = sqlite3.connect(":memory:", isolation_level=None)
        db.backup(memory)
        _migrate(memory, path)
        memory.execute("PRAGMA query_only=ON")  # nobody would see what was written there
    except BaseException:
        db.close()
        if memory is not None:
            memory.close()
        raise
    db.close()
    return memory


def _readable(path: Path, busy: float) -> sqlite3.Connection:
    """Open the file without changing it, also where nothing can be made beside it."""
    db = _connect(path, "mode=ro", busy)
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        return db
    except BaseException as exc:
        db.close()
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if not os.access(path, os.R_OK, effective_ids=True):
            raise
        if _has_wal(path):
            raise DmcopyError(
                f"cannot read the journal {path}: {path}-wal holds what was written last, and to "
                "read that its directory must be writable; or copy both to another directory, and "
                "set DMCOPY_STATE_DIR"
            ) from exc
    # Without a WAL the file is all there is, and where nobody can write nothing changes it.
    return _connect(path, "immutable=1", busy)


def _connect(path: Path, how: str, busy: float) -> sqlite3.Connection:
    """Open the file; only what is asked of it later shows whether it can be read."""
    db = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{how}", uri=True, timeout=busy, isolation_level=None
    )
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    """Give the version, one of those that can be read."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if application == _APPLICATION and version == VERSION:
        return VERSION
    if application == 0 and version == _OLD:
        return _OLD
    if application == _APPLICATION and version > VERSION:
        raise DmcopyError(
            f"the journal {path} is of version {version}, this dmcopy reads {_OLD} and {VERSION}; "
            "use the dmcopy that wrote it, or move the file away"
        )
    raise JournalDamaged(str(path), "it is no journal of dmcopy")


def _check(db: sqlite3.Connection, path: Path, schema: str) -> None:
    """Raise `JournalDamaged` unless each page is whole and the tables are those of *schema*."""
    answer = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
    if answer != ["ok"]:
        raise JournalDamaged(str(path), said(answer[0]))
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        if _tables(db) != _tables(model):
            raise JournalDamaged(str(path), "its tables are not those of dmcopy")


def _tables(db: sqlite3.Connection) -> list[Row]:
    return db.execute(
        "SELECT name, type, tbl_name, sql FROM sqlite_schema ORDER BY name"
    ).fetchall()


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a file of version 1 to the present one, in one transaction.

    Version 1 knew nothing of what is durable: its jobs have no done rows.
    """
    db.execute("BEGIN EXCLUSIVE")
    try:
        if _version(db, path) == _OLD:
            _check(db, path, _SCHEMA_1)
            jobs = db.execute(f"SELECT {_COLUMNS_1} FROM job").fetchall()  # noqa: S608 (constant)
            lists = {
                "intent": db.execute("SELECT job, at, what FROM intent ORDER BY rowid").fetchall(),
                "leftover": db.execute(
                    "SELECT job, 0.0, path FROM leftover ORDER BY rowid"
                ).fetchall(),
            }
            for table in ("leftover", "intent", "job"):
                db.execute(f"DROP TABLE {table}")
            ledger = _fill(db, path)
            _take_over(ledger, path, jobs, lists)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


_COLUMNS_1: Final = ", ".join(TABLES["job"][0][:8])


def _take_over(ledger: Ledger, path: Path, jobs: list[Row], lists: dict[str, list[Row]]) -> None:
    tally = Tally()
    for job in jobs:
        try:
            State(job[2])
            for value in (job[1], *job[5:8]):
                json.loads(value or "{}")
        except ValueError as exc:
            raise JournalDamaged(str(path), f"what it says of job {job[0]} is garbled") from exc
        parts: dict[str, Tally] = {}
        for kind, rows in lists.items():
            parts[kind] = Tally()
            for seq, (_, at, value) in enumerate(row for row in rows if row[0] == job[0]):
                parts[kind] = ledger.put(
                    "entry", parts[kind], job[0], kind, seq, at, json.dumps(value)
                )
        text = json.dumps({kind: part.as_json() for kind, part in parts.items()})
        tally = ledger.put("job", tally, *job, None, None, text)
    ledger.seal("job", tally)


def _statements(schema: str) -> list[str]:
    """Split at the semicolons: executescript would commit the caller's transaction."""
    return [statement for statement in schema.split(";\n") if statement.strip()]


def _has_wal(path: Path) -> bool:
    """Tell whether there is anything in the file's WAL; an empty one says nothing."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except FileNotFoundError:
        return False
