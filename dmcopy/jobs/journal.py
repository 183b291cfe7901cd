"""What jobs were asked, intended and did: SQLite, so that a crash tears nothing.

One file for all jobs of the host.  WAL with synchronous=FULL: what was recorded before a
change of the machine is on the medium when the change is made.  What a later `dmcopy resume`
must never get wrong (begun, retired, lost, ended) does not even depend on the WAL file.  The
order is: durable at the destination, `commit`, `retire`, and only then the origin's new table.

Never written while I/O is held (stack.plan): the file may lie on what is held.  How the file
is checked: `ledger`, `ledger_file`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from dmcopy.core.extent import Extent
from dmcopy.errors import Refused
from dmcopy.jobs.ledger import Row, Tally
from dmcopy.jobs.ledger_file import open_ledger
from dmcopy.jobs.state import MOVES, State, is_final
from dmcopy.units import Sectors

_BUSY_SECONDS: Final = 10.0
_KEPT: Final = 1000  # of a job's events, and of its intents


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the journal holds of one job; but for *lost*, the last ones are JSON objects."""

    name: str
    state: State
    created: float
    changed: float
    lost: str | None  # why its point in time is gone; such a job is never resumed
    spec: Mapping[str, Any]  # Any: JSON
    begun: Mapping[str, Any] | None
    progress: Mapping[str, Any] | None
    ended: Mapping[str, Any] | None
    facts: Mapping[str, Any] | None


class Done(NamedTuple):
    """A run that is durable at the destination."""

    extent: Extent
    digest: str | None  # of the whole run
    retired: Sectors  # of its beginning: these must never be read from the source again


class Logged(NamedTuple):
    """An event of a job, and when it was logged (seconds since 1970)."""

    at: float
    event: Mapping[str, Any]  # Any: JSON


class _Job(NamedTuple):
    """A row of the table job."""

    name: str
    spec: str
    state: str
    created: float
    changed: float
    begun: str | None = None
    progress: str | None = None
    ended: str | None = None
    facts: str | None = None
    lost: str | None = None
    parts: str = "{}"

    @property
    def group(self) -> str | None:
        """The job that it is a member of, if any."""
        group: str | None = json.loads(self.spec).get("group")
        return group

    def part(self, kind: str) -> Tally:
        """Give the tally of its rows of that kind."""
        found = json.loads(self.parts).get(kind)
        return Tally.from_json(found) if found else Tally()

    def with_part(self, kind: str, tally: Tally) -> _Job:
        """Give the row with another tally of that kind."""
        return self._replace(parts=json.dumps(json.loads(self.parts) | {kind: tally.as_json()}))

    def record(self) -> Record:
        """Give what the others know of it."""

        def object_in(text: str | None) -> Mapping[str, Any] | None:  # Any: JSON
            return json.loads(text) if text is not None else None

        return Record(
            name=self.name,
            state=State(self.state),
            created=self.created,
            changed=self.changed,
            lost=self.lost,
            spec=json.loads(self.spec),
            begun=object_in(self.begun),
            progress=object_in(self.progress),
            ended=object_in(self.ended),
            facts=object_in(self.facts),
        )


class Journal:
    """The jobs of this host; a context manager that closes the file.

    *read_only* changes nothing at all, and works where nothing can be written.  *busy* is how
    long other processes are waited for, in seconds.  Every method raises `JournalDamaged` when
    the file is not as it was written, and `DmcopyError` when it cannot be used: of another
    version, full, not writable, busy.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        read_only: bool = False,
        busy: float = _BUSY_SECONDS,
    ) -> None:
        self._ledger = open_ledger(path, create=create, read_only=read_only, busy=busy)

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
        self._ledger.close()

    # Jobs.

    def define(self, name: str, spec: Mapping[str, Any]) -> None:  # Any: JSON
        """Begin the record of a job; an ended job of the same name is forgotten.

        Raises `Refused` while the job of that name has not ended.
        """
        now = time.time()
        with self._ledger.write():
            old = self._find(name)
            if old is not None and not is_final(State(old.state)):
                raise Refused(
                    f"there is a job {name} already, and it is {old.state}",
                    way_out=f"go on with it: dmcopy resume {name}; or give it up: "
                    f"dmcopy cancel {name}",
                )
            self._forget(name)
            self._put(_Job(name, json.dumps(spec), State.DEFINED, now, now))

    def set_spec(self, name: str, spec: Mapping[str, Any]) -> None:  # Any: JSON
        """Record that the job is asked something else from now on."""
        with self._changing(name) as change:
            change.job = change.job._replace(spec=json.dumps(spec))

    def set_facts(self, name: str, facts: Mapping[str, Any]) -> None:  # Any: JSON
        """Record what a later resume needs to know."""
        with self._changing(name) as change:
            change.job = change.job._replace(facts=json.dumps(facts))

    def move(self, name: str, to: State) -> None:
        """Record the job's next state; raises AssertionError for a move that is not allowed.

        A final state does not depend on the WAL.
        """
        with self._changing(name) as change:
            now = State(change.job.state)
            assert to in MOVES[now], f"job {name} cannot go from {now} to {to}"
            change.job = change.job._replace(state=to)
        if is_final(to):
            self._ledger.settle()

    def lost(self, name: str, why: str) -> None:
        """Record that the job's point in time is gone, before anything else is done about it.

        Does not depend on the WAL.  The first reason stays.
        """
        with self._changing(name) as change:
            if change.job.lost is None:
                change.job = change.job._replace(lost=why)
        self._ledger.settle()

    def note(self, name: str, column: str, event: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep an event: *column* is begun (does not depend on the WAL), progress or ended."""
        assert column in ("begun", "progress", "ended")
        told: dict[str, Any] = {column: json.dumps(event)}  # Any: mypy takes no narrower one
        with self._changing(name) as change:
            change.job = change.job._replace(**told)
        if column == "begun":
            self._ledger.settle()

    def state(self, name: str) -> State | None:
        """Give the job's state, None when there is no such job."""
        record = self.record(name)
        return record.state if record else None

    def record(self, name: str) -> Record | None:
        """Give what there is of one job, None when there is no such job."""
        with self._ledger.read():
            job = self._find(name)
        return job.record() if job else None

    def records(self) -> list[Record]:
        """Give all jobs, oldest first."""
        with self._ledger.read():
            jobs = self._jobs()
        return sorted((job.record() for job in jobs), key=lambda record: record.created)

    def forget_ended(self, *, keep: int, older_than: float, now: float) -> list[str]:
        """Forget jobs in a final state: all but the last *keep*, and the old ones of these.

        Old is what last changed more than *older_than* seconds before *now*.  A job that may
        have left a file is kept, and one whose group has not ended.  Gives the names of the
        forgotten.
        """
        with self._ledger.write():
            jobs = self._jobs()
            alive = {job.name for job in jobs if not is_final(State(job.state))}
            ended = [job for job in jobs if job.name not in alive and job.group not in alive]
            ended.sort(key=lambda job: job.changed, reverse=True)
            names = [
                job.name
                for rank, job in enumerate(ended)
                if (rank >= keep or now - job.changed > older_than)
                and not job.part("leftover").rows
            ]
            for name in names:
                self._forget(name)
        return names

    # What is at the destination.

    def commit(
        self,
        name: str,
        rows: Sequence[tuple[Extent, str | None]],
        *,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Record runs that are durable at the destination, with the digest of each whole run.

        A run takes the place of one with the same start, which it must not be shorter than.
        Raises AssertionError for a run that overlaps any other.  *counts* are kept with the
        facts, as ``counts``: what was counted up to here.
        """
        with self._changing(name) as change:
            tally = change.job.part("done")
            runs = {run.extent.start: run for run in self._done(change.job)}
            for extent, digest in rows:
                old = runs.get(extent.start)
                retired = old.retired if old else Sectors(0)
                assert old is None or old.extent.length <= extent.length, (
                    f"job {name}: {extent} is shorter than {old.extent}"
                )
                runs[extent.start] = Done(extent, digest, retired)
                tally = self._ledger.put("done", tally, name, *extent, retired, digest)
            _check_disjoint(name, runs)
            change.job = change.job.with_part("done", tally)
            if counts is not None:
                facts = json.loads(change.job.facts or "{}") | {"counts": dict(counts)}
                change.job = change.job._replace(facts=json.dumps(facts))

    def retire(self, name: str) -> None:
        """Record that all that is done so far is retired: it will never be read again.

        Does not depend on the WAL when this returns, and only then may the range leave the
        snapshot.
        """
        with self._changing(name) as change:
            tally = change.job.part("done")
            for extent, digest, retired in self._done(change.job):
                if retired != extent.length:
                    row = (name, *extent, extent.length, digest)
                    tally = self._ledger.put("done", tally, *row)
            change.job = change.job.with_part("done", tally)
        self._ledger.settle()

    def done(self, name: str) -> list[Done]:
        """Give what is durable at the destination, in order."""
        with self._ledger.read():
            job = self._find(name)
            return self._done(job) if job else []

    # What else is kept of a job.

    def intend(self, name: str, what: str) -> None:
        """Record what is about to be done; the last 1000 are kept."""
        self._append(name, "intent", what, keep=_KEPT)

    def may_leave(self, name: str, path: str) -> None:
        """Record a file that is removed should the job die."""
        self._append(name, "leftover", path, keep=None)

    def log(self, name: str, event: Mapping[str, Any]) -> None:  # Any: JSON
        """Record what happened to the job; the last 1000 events are kept."""
        self._append(name, "event", event, keep=_KEPT)

    def keep_history(self, name: str, history: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep how the copy went so far (`core.history`), in place of what was kept before."""
        with self._changing(name) as change:
            row = (name, "history", 0, time.time(), json.dumps(history))
            tally = self._ledger.put("entry", change.job.part("history"), *row)
            change.job = change.job.with_part("history", tally)

    def history(self, name: str) -> Mapping[str, Any] | None:  # Any: JSON
        """Give what `keep_history` kept last, None where nothing was."""
        entries = self._entries(name, "history")
        return entries[-1][1] if entries else None

    def keep_stamp(self, name: str, stamp: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep what the source's file system said last (`jobs.stamps`), in place of the last."""
        with self._changing(name) as change:
            row = (name, "stamp", 0, time.time(), json.dumps(stamp))
            tally = self._ledger.put("entry", change.job.part("stamp"), *row)
            change.job = change.job.with_part("stamp", tally)

    def stamp(self, name: str) -> Mapping[str, Any] | None:  # Any: JSON
        """Give what `keep_stamp` kept last, None where nothing was."""
        entries = self._entries(name, "stamp")
        return entries[-1][1] if entries else None

    def forget_leftovers(self, name: str) -> None:
        """Record that there are none any more: the same path may be somebody else's later."""
        with self._ledger.write():
            job = self._find(name)
            if job is not None and job.part("leftover").rows:
                tally = self._ledger.remove("entry", job.part("leftover"), name, "leftover")
                self._put(job.with_part("leftover", tally))

    def leftovers(self, name: str) -> list[str]:
        """Give the files that a dead job may have left."""
        return [value for _, value in self._entries(name, "leftover")]

    def intents(self, name: str) -> list[str]:
        """Give what the job set out to do, in order."""
        return [value for _, value in self._entries(name, "intent")]

    def log_of(self, name: str) -> list[Logged]:
        """Give what happened to the job, oldest first."""
        return [Logged(at, event) for at, event in self._entries(name, "event")]

    # What is set for the host.

    def setting(self, key: str) -> str | None:
        """Give a setting of this host, None where it has not been set."""
        with self._ledger.read():
            rows = self._ledger.rows("setting", self._ledger.sealed("setting"))
        return {name: json.loads(value) for name, value in rows}.get(key)

    def set_setting(self, key: str, value: str | None) -> None:
        """Set a setting of this host, or unset it with None."""
        with self._ledger.write():
            tally = self._ledger.remove("setting", self._ledger.sealed("setting"), key)
            if value is not None:
                tally = self._ledger.put("setting", tally, key, json.dumps(value))
            self._ledger.seal("setting", tally)

    # Rows; the callers have a transaction open, but for the last two.

    def _jobs(self) -> list[_Job]:
        return [_Job(*row) for row in self._ledger.rows("job", self._ledger.sealed("job"))]

    def _find(self, name: str) -> _Job | None:
        row = self._ledger.row("job", name)
        if row is None:
            self._jobs()  # finds out whether one was lost
            return None
        return _Job(*row)

    def _put(self, job: _Job) -> None:
        self._ledger.seal("job", self._ledger.put("job", self._ledger.sealed("job"), *job))

    def _forget(self, name: str) -> None:
        for table in ("done", "entry"):
            self._ledger.remove(table, Tally(), name)
        self._ledger.seal("job", self._ledger.remove("job", self._ledger.sealed("job"), name))

    def _done(self, job: _Job) -> list[Done]:
        rows = self._ledger.rows("done", job.part("done"), job.name)
        return [
            Done(Extent(start, length), digest, retired)
            for _, start, length, retired, digest in rows
        ]

    def _rows(self, job: _Job, kind: str) -> list[Row]:
        return self._ledger.rows("entry", job.part(kind), job.name, kind)

    @contextmanager
    def _changing(self, name: str) -> Iterator[_Change]:
        with self._ledger.write():
            job = self._find(name)
            assert job is not None, f"there is no job {name}"
            change = _Change(job)
            yield change
            self._put(change.job._replace(changed=time.time()))

    def _append(self, name: str, kind: str, value: object, *, keep: int | None) -> None:
        with self._changing(name) as change:
            rows = self._rows(change.job, kind)
            tally = change.job.part(kind)
            if keep is not None and len(rows) >= keep:
                tally = self._ledger.remove("entry", tally, *rows[0][:3])
            seq = rows[-1][2] + 1 if rows else 0
            row = (name, kind, seq, time.time(), json.dumps(value))
            change.job = change.job.with_part(kind, self._ledger.put("entry", tally, *row))

    def _entries(self, name: str, kind: str) -> list[tuple[float, Any]]:  # Any: JSON
        with self._ledger.read():
            job = self._find(name)
            rows = self._rows(job, kind) if job else []
        return [(at, json.loads(value)) for _, _, _, at, value in rows]


class _Change:
    """The job that is being changed."""

    def __init__(self, job: _Job) -> None:
        self.job = job


def _check_disjoint(name: str, runs: Mapping[Sectors, Done]) -> None:
    end = Sectors(0)
    for start in sorted(runs):
        assert start >= end, f"job {name}: {runs[start].extent} overlaps what is done up to {end}"
        end = runs[start].extent.end
