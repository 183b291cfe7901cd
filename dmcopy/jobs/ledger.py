"""Rows in SQLite of which none can change or get lost unseen; knows nothing of jobs.

Every row ends with a checksum over its values.  Whatever owns rows (a job its own, the file
its jobs) keeps their `Tally`, in a row that has a checksum again; the last owner is the table
``seal``.  All of it is checked by every read and before every write: SQLite's own check, made
when the file is opened (`ledger_file`), finds a page that is torn, not a value that lies.

No table has an index beside itself (WITHOUT ROWID): there is no second way to a row that
could tell something else.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from dmcopy.errors import DmcopyError, JournalDamaged

Row: TypeAlias = tuple[Any, ...]  # Any: str, int, float or None, as the table says

_RETRY_SECONDS: Final = 0.05

# table: its columns without the checksum, and how many of them are the key
TABLES: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    "seal": (("part", "rows", "sum"), 1),
    "job": (
        (
            *("name", "spec", "state", "created", "changed", "begun", "progress", "ended"),
            *("facts", "lost", "parts"),
        ),
        1,
    ),
    "done": (("job", "start", "length", "retired", "digest"), 2),
    "entry": (("job", "kind", "seq", "at", "value"), 3),
    "setting": (("key", "value"), 1),
}


class Tally(NamedTuple):
    """How many rows there are, and the XOR of their checksums."""

    rows: int = 0
    sum: int = 0

    def plus(self, checksum: str) -> Tally:
        """Give the tally with one row more."""
        return Tally(self.rows + 1, self.sum ^ int(checksum, 16))

    def minus(self, checksum: str) -> Tally:
        """Give the tally with one row less."""
        return Tally(self.rows - 1, self.sum ^ int(checksum, 16))

    def as_json(self) -> list[Any]:  # Any: JSON
        """Give what is kept of it; SQLite has no unsigned 64-bit integer."""
        return [self.rows, f"{self.sum:016x}"]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Tally:  # Any: JSON
        """Take what `as_json` gave."""
        return cls(value[0], int(value[1], 16))


def checksum(table: str, values: Sequence[object]) -> str:
    """Give the checksum of a row: 16 hex digits of the SHA-256 of its values as JSON."""
    # A garbled file can give bytes, which JSON has not: any text but the right one will do.
    text = json.dumps([table, *values], separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode("ascii"), usedforsecurity=False).hexdigest()[:16]


class Ledger:
    """The tables of an open file; `read` and `write` are the transactions.

    Raises `JournalDamaged` for a row that is not what was written, and `DmcopyError` for what
    SQLite cannot do; *busy* is how long it waits for other processes, in seconds.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, *, busy: float) -> None:
        self._db = db
        self._path = path
        self._busy = busy

    def close(self) -> None:
        """Close the file; twice is fine."""
        with suppress(sqlite3.Error):
            self._db.close()

    @contextmanager
    def read(self) -> Iterator[None]:
        """See one state of the file throughout; short, for it is in the way of `settle`."""
        with errors(self._path, "read"):
            self._roll_back()
            try:
                self._db.execute("BEGIN")
                yield
            finally:
                self._roll_back()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Do all of it or nothing; what was read in here is still so when it is committed."""
        with errors(self._path, "write"):
            self._roll_back()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            finally:
                self._roll_back()

    def _roll_back(self) -> None:
        """Leave a transaction that did not come to its end.

        Also before each: Ctrl-C is an exception that comes between any two steps, and so also
        right after the one that began a transaction, or before the one that ends it.
        """
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def settle(self) -> None:
        """Make sure that what is committed stays even if the WAL is lost: it is in no WAL then.

        Raises `DmcopyError` when others read without end, or the medium fails.
        """
        deadline = time.monotonic() + self._busy
        with errors(self._path, "write"):
            # One row: was it blocked, frames in the WAL, frames put into the file.  SQLite waits
            # for readers by itself, but not for another process that does the same.
            while (row := self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()) != (
                0,
                0,
                0,
            ):
                if time.monotonic() >= deadline:
                    raise DmcopyError(
                        f"cannot put the last changes into the journal {self._path} itself "
                        f"({row[1]} pages wait in {self._path}-wal): "
                        "another program has been reading it all the time"
                    )
                time.sleep(_RETRY_SECONDS)

    def rows(self, table: str, tally: Tally, *key: object) -> list[Row]:
        """Give the rows whose key begins with *key*, in order of their keys."""
        rows = self._rows(table, *key)
        seen = Tally()
        for row in rows:
            seen = seen.plus(row[-1])
        if seen != tally:
            whose = f" of {key[0]}" if key else ""
            raise self._damaged(f"{tally.rows} rows {table}{whose} were written, not these")
        return [row[:-1] for row in rows]

    def row(self, table: str, *key: object) -> Row | None:
        """Give the one row of that key; its absence is not proved by None."""
        rows = self._rows(table, *key)
        return rows[0][:-1] if rows else None

    def put(self, table: str, tally: Tally, *values: object) -> Tally:
        """Add a row, in place of the one of the same key; gives the new tally."""
        tally = self.remove(table, tally, *values[: TABLES[table][1]])
        own = checksum(table, values)
        marks = ", ".join("?" * (len(values) + 1))
        self._db.execute(
            f"INSERT INTO {table} VALUES ({marks})",  # noqa: S608 (a name from TABLES)
            (*values, own),
        )
        return tally.plus(own)

    def remove(self, table: str, tally: Tally, *key: object) -> Tally:
        """Remove the rows whose key begins with *key*; gives the new tally."""
        for row in self._rows(table, *key):
            tally = tally.minus(row[-1])
        self._db.execute(f"DELETE FROM {table}{_where(table, len(key))}", key)  # noqa: S608 (same)
        return tally

    def sealed(self, part: str) -> Tally:
        """Give the tally of all rows of a table that no row owns."""
        row = self.row("seal", part)
        if row is None:
            raise self._damaged(f"its seal of {part} is missing")
        return Tally.from_json(row[1:])

    def seal(self, part: str, tally: Tally) -> None:
        """Keep the tally of all rows of a table that no row owns."""
        self.put("seal", Tally(), part, *tally.as_json())

    def _rows(self, table: str, *key: object) -> list[Row]:
        columns, length = TABLES[table]
        statement = (
            f"SELECT {', '.join(columns)}, checksum FROM {table}{_where(table, len(key))} "  # noqa: S608 (same)
            f"ORDER BY {', '.join(columns[:length])}"
        )
        rows: list[Row] = self._db.execute(statement, key).fetchall()
        for row in rows:
            if checksum(table, row[:-1]) != row[-1]:
                raise self._damaged(f"a row {table} is not as it was written")
        return rows

    def _damaged(self, what: str) -> JournalDamaged:
        return JournalDamaged(str(self._path), what)


def _where(table: str, length: int) -> str:
    columns = TABLES[table][0][:length]
    return f" WHERE {' AND '.join(f'{column}=?' for column in columns)}" if columns else ""


@contextmanager
def errors(path: Path, verb: str) -> Iterator[None]:
    """Raise SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _error(path, verb, exc) from exc
    except UnicodeDecodeError as exc:  # of SQLite's message about a garbled statement
        raise JournalDamaged(str(path), said(exc.object.decode("utf-8", "replace"))) from exc


def _error(path: Path, verb: str, exc: sqlite3.Error) -> DmcopyError:
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DmcopyError(f"cannot {verb} the journal {path}: another dmcopy keeps it busy")
    if code == sqlite3.SQLITE_FULL:
        return DmcopyError(f"cannot {verb} the journal {path}: no space left for it")
    if code in (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_AUTH,
    ):
        return DmcopyError(f"cannot {verb} the journal {path}: {exc}")
    return JournalDamaged(str(path), said(str(exc)))


def said(text: str) -> str:
    """Give what SQLite said as one line; it quotes from the file, garbled as that may be."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
