"""What jobs were asked, intended and did: SQLite, so that a crash tears nothing.

One file for all jobs of the host.  WAL with synchronous=FULL: what was recorded before a
change of the machine is on the medium when the change is made.  Never written while I/O is
held (stack.plan): the file may lie on what is held.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from dmcopy.errors import DmcopyError
from dmcopy.jobs.state import MOVES, State

_VERSION: Final = 1
_BUSY_SECONDS: Final = 10.0

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS job (
    name        TEXT PRIMARY KEY,
    spec        TEXT NOT NULL,   -- JSON: CopySpec
    state       TEXT NOT NULL,
    created     REAL NOT NULL,   -- seconds since 1970, as all times here
    changed     REAL NOT NULL,
    begun       TEXT,            -- JSON: the event
    progress    TEXT,            -- JSON: the last such event
    ended       TEXT             -- JSON: the event
);
CREATE TABLE IF NOT EXISTS intent (
    job         TEXT NOT NULL REFERENCES job(name) ON DELETE CASCADE,
    at          REAL NOT NULL,
    what        TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS leftover (   -- files that rescue removes when the job is dead
    job         TEXT NOT NULL REFERENCES job(name) ON DELETE CASCADE,
    path        TEXT NOT NULL
);
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the journal holds of one job; the last four are JSON objects."""

    name: str
    state: State
    created: float
    changed: float
    spec: Mapping[str, Any]  # Any: JSON
    begun: Mapping[str, Any] | None
    progress: Mapping[str, Any] | None
    ended: Mapping[str, Any] | None


class Journal:
    """The jobs of this host; a context manager that closes the file.

    Raises `DmcopyError` when the file cannot be used: of another version, damaged, or not
    writable.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._path = path
        try:
            if create:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = "rwc" if create else "rw"
            self._db = sqlite3.connect(
                f"file:{path}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
            )
            self._prepare()
        except (OSError, sqlite3.Error) as exc:
            raise DmcopyError(f"cannot use the journal {path}: {exc}") from exc

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise DmcopyError(
                f"the journal {self._path} is of version {version}, this dmcopy reads {_VERSION}; "
                "use the dmcopy that wrote it, or move the file away"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        if version == 0:
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; twice is fine."""
        with suppress(sqlite3.Error):
            self._db.close()

    def _write(self, statement: str, *values: object) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.Error as exc:
            raise DmcopyError(f"cannot write the journal {self._path}: {exc}") from exc

    def define(self, name: str, spec: Mapping[str, Any]) -> None:  # Any: JSON
        """Begin the record of a job; an ended job of the same name is forgotten."""
        now = time.time()
        self._write("DELETE FROM job WHERE name=?", name)
        self._write(
            "INSERT INTO job (name, spec, state, created, changed) VALUES (?, ?, ?, ?, ?)",
            name,
            json.dumps(spec),
            State.DEFINED,
            now,
            now,
        )

    def intend(self, name: str, what: str) -> None:
        """Record what is about to be done."""
        self._write("INSERT INTO intent VALUES (?, ?, ?)", name, time.time(), what)

    def may_leave(self, name: str, path: str) -> None:
        """Record a file that is removed should the job die."""
        self._write("INSERT INTO leftover VALUES (?, ?)", name, path)

    def forget_leftovers(self, name: str) -> None:
        """Record that there are none any more: the same path may be somebody else's later."""
        self._write("DELETE FROM leftover WHERE job=?", name)

    def move(self, name: str, to: State) -> None:
        """Record the job's next state; raises AssertionError for a move that is not allowed."""
        now = self.state(name)
        assert now is not None, f"there is no job {name}"
        assert to in MOVES[now], f"job {name} cannot go from {now} to {to}"
        self._write("UPDATE job SET state=?, changed=? WHERE name=?", to, time.time(), name)

    def note(self, name: str, column: str, event: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep an event: *column* is begun, progress or ended."""
        assert column in ("begun", "progress", "ended")
        self._write(
            f"UPDATE job SET {column}=?, changed=? WHERE name=?",  # noqa: S608 (checked above)
            json.dumps(event),
            time.time(),
            name,
        )

    def state(self, name: str) -> State | None:
        """Give the job's state, None when there is no such job."""
        row = self._db.execute("SELECT state FROM job WHERE name=?", (name,)).fetchone()
        return State(row[0]) if row else None

    def leftovers(self, name: str) -> list[str]:
        """Give the files that a dead job may have left."""
        rows = self._db.execute("SELECT path FROM leftover WHERE job=?", (name,))
        return [row[0] for row in rows]

    def intents(self, name: str) -> list[str]:
        """Give what the job set out to do, in order."""
        rows = self._db.execute("SELECT what FROM intent WHERE job=? ORDER BY rowid", (name,))
        return [row[0] for row in rows]

    def records(self) -> list[Record]:
        """Give all jobs, oldest first."""
        rows = self._db.execute(
            "SELECT name, state, created, changed, spec, begun, progress, ended FROM job "
            "ORDER BY created"
        )
        return [
            Record(
                name=name,
                state=State(state),
                created=created,
                changed=changed,
                spec=json.loads(spec),
                begun=json.loads(begun) if begun else None,
                progress=json.loads(progress) if progress else None,
                ended=json.loads(ended) if ended else None,
            )
            for name, state, created, changed, spec, begun, progress, ended in rows
        ]
