"""Go on with a job that was interrupted, as of the begin time that it had.

What must be so: the journal has the begin time and what is durable at the destination; the
source is the device it was; and every write since the begin time was saved - or, for an
idle device, there was none.  Whatever cannot be shown is *point in time lost*, with the
reason: never a guess.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dmcopy.core import events
from dmcopy.core.extent import Extent
from dmcopy.core.history import History
from dmcopy.destinations import parse as parse_destination
from dmcopy.destinations.base import Destination, Surroundings
from dmcopy.errors import DmcopyError, LeftBehind, PointInTimeLost, Refused, UsageError
from dmcopy.jobs.after_boot import cow_of, room_on_record, source_now, store_now
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Logged, Record
from dmcopy.jobs.prepare import Earlier, Prepared, spare_devices
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.standing import Json, SplicedNow, Standing, cow_reading
from dmcopy.jobs.state import State, is_final
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.adopt import Adopted, adopt, settle
from dmcopy.stack.begin import Claim, Spliced
from dmcopy.stack.cow import CowPlan
from dmcopy.stack.discover import Provider, Source
from dmcopy.stack.evidence import refuse_written
from dmcopy.stack.hold import Instant
from dmcopy.stack.reassemble import reassembled
from dmcopy.stack.recover import (
    Remains,
    find_remains,
    remove_files,
    remove_lvs,
    take_apart,
)
from dmcopy.units import Sectors, to_sectors


class Taken(Standing):
    """A snapshot that an earlier process of the job spliced in, in this boot."""

    def __init__(
        self,
        host: Host,
        source: Source,
        spec: CopySpec,
        *,
        retired: Sequence[Extent],
        files: Sequence[str],
    ) -> None:
        """*retired* is on record as such, *files* are the COW device's, which go at the end."""
        self._host = host
        self._hold_limit = spec.hold_limit
        self._retired = tuple(retired)
        self._source = source
        self._chunk = to_sectors(spec.chunk)
        self._job = spec.name
        self._files = tuple(files)
        self._adopted: Adopted | None = None

    def lines(self) -> tuple[str, ...]:
        return ("# go on with the snapshot that is there",)

    def begin(self, record: Callable[[str], None]) -> Instant | None:
        self.check()
        adopted = self._adopted
        assert adopted is not None
        if adopted.is_braked:
            assert self._host.dm is not None
            assert self._source.dm_name is not None
            record("take out the brake that was left")
            table = settle(
                self._host.dm,
                adopted,
                job=self._job,
                name=self._source.dm_name,
                limit=self._hold_limit,
            )
            self._adopted = replace(adopted, origin_table=table, is_braked=False)
        return None

    def check(self) -> None:
        assert self._host.dm is not None
        assert self._source.table is not None
        assert self._source.dm_name is not None
        self._adopted = adopt(
            self._host.dm,
            self._remains(),
            name=self._source.dm_name,
            original=self._source.table,
            chunk=self._chunk,
            retired=self._retired,
        )
        self.snapshot = self._host.sysfs.node(self._adopted.snapshot)

    def reading(self) -> Json:
        adopted = self._adopted
        assert adopted is not None
        return cow_reading(
            self._host.sysfs,
            source=adopted.source,
            cow=adopted.cow,
            chunk=self._chunk,
            snapshot_uuid=adopted.snapshot_uuid,
            origin=adopted.origin,
            origin_table=adopted.origin_table,
        )

    def end(self) -> float | None:
        return _take_apart(self._host, self._job, self._files)

    def _remains(self) -> Remains:
        assert self._host.dm is not None
        return find_remains(self._host.dm, self._host.sysfs).get(self._job, Remains(self._job))


class Reassembled(Standing):
    """A snapshot that is put together again around its store, after the machine went down."""

    def __init__(
        self,
        spliced: Spliced,
        source: Source,
        chunk: Sectors,
        host: Host,
        *,
        job: str,
        files: Sequence[str],
    ) -> None:
        """*files* are those of the COW device, which go at the end."""
        self._inner = SplicedNow(spliced, source, chunk, host.sysfs)
        self._source = source
        self._host = host
        self._job = job
        self._files = tuple(files)

    def lines(self) -> tuple[str, ...]:
        return self._inner.lines()

    def check(self) -> None:
        refuse_written(self._source.devno, self._source.path, self._host.sysfs)

    def begin(self, record: Callable[[str], None]) -> Instant | None:
        self._inner.begin(record)
        self.snapshot = self._inner.snapshot
        return None

    def reading(self) -> Json:
        return self._inner.reading()

    def end(self) -> float | None:
        held = self._inner.end()
        _take_apart(self._host, self._job, self._files)
        return held


class ClaimedAgain(Standing):
    """An idle device: claimed again, if nobody wrote to it meanwhile."""

    def __init__(self, source: Source, sysfs: Sysfs, writes: int) -> None:
        self._source = source
        self._writes = writes
        self._sysfs = sysfs
        # No flush: what another left in the page cache must still be seen as a write of his.
        self._claim = Claim(source.node, sysfs, flush=False)

    def lines(self) -> tuple[str, ...]:
        return tuple(self._claim.lines())

    def begin(self, record: Callable[[str], None]) -> Instant | None:
        record(str(self._claim))
        self._claim.do()
        self.check()
        return None

    def check(self) -> None:
        writes = self._sysfs.writes(self._source.devno) - self._writes
        if writes:
            raise PointInTimeLost(
                f"{self._source.path} was written after the job was interrupted ({writes} writes)"
            )

    def reading(self) -> Json:
        idle = {"devno": self._source.devno, "writes": self._writes}
        return {"source_path": self._source.node, "cow": None, "idle": idle}

    def facts(self) -> Json:
        return {"idle_writes": self._writes}

    def end(self) -> float | None:
        self._claim.undo()
        return None


class Over(Standing):
    """Nothing need stand any more: everything is durable at the destination, and on record.

    What was not yet taken apart when the job was interrupted still is.
    """

    def __init__(self, host: Host, job: str, files: Sequence[str]) -> None:
        self._host = host
        self._job = job
        self._files = tuple(files)

    def lines(self) -> tuple[str, ...]:
        return ()

    def begin(self, record: Callable[[str], None]) -> Instant | None:
        raise AssertionError("a copied job begins nothing")

    def check(self) -> None:
        """Nothing can be missing."""

    def reading(self) -> Json:
        raise AssertionError("a copied job reads nothing")

    def end(self) -> float | None:
        return _take_apart(self._host, self._job, self._files)


def _take_apart(host: Host, job: str, files: Sequence[str]) -> float | None:
    """Take apart what the kernel has of a job, and remove the *files* of its COW device."""
    remains = find_remains(host.dm, host.sysfs).get(job) if host.dm is not None else None
    held = None
    left: list[str] = []
    if remains is not None and host.dm is not None:
        _, not_taken, held = take_apart(host.dm, remains)
        left += not_taken
        files = sorted(remains.cow_files().union(files))
        if remains.lvs:
            _, kept = remove_lvs(Lvm(host.run), job)
            left += kept
    _, kept_files = remove_files(files)
    left += kept_files
    if left:
        raise LeftBehind(left, job=job)
    return held


def was_kept(record: Record) -> bool:
    """Tell whether the copy is complete, and its snapshot was to stay (``--keep``)."""
    return record.ended is not None and bool(record.ended.get("kept"))


def why_not_resumable(record: Record) -> str | None:
    """Say why the journal alone rules out going on with a job; None when it does not."""
    if is_final(record.state):
        return f"it is {record.state}"
    if record.begun is None or record.facts is None:
        return "it was interrupted before its begin time was fixed"
    if was_kept(record):
        return "the copy is complete, and only its snapshot was kept"
    return record.lost


class Outlook(NamedTuple):
    """Whether a job that nobody runs can be gone on with.

    *never*: why it cannot, whatever happens.  *not_now*: what is in the way, and may be put
    right: a device that is not there, a destination in use.
    """

    never: str | None = None
    not_now: str | None = None


def look_ahead(record: Record, host: Host, journal: Journal) -> Outlook:
    """Look whether a job can be gone on with; changes nothing."""
    never = why_not_resumable(record)
    if never is not None:
        return Outlook(never=never)
    try:
        prepare_resume(record.name, host, journal, verify=False).standing.check()
    except PointInTimeLost as exc:
        return Outlook(never=str(exc))
    except (DmcopyError, OSError) as exc:
        return Outlook(not_now=str(exc))
    return Outlook()


def prepare_resume(name: str, host: Host, journal: Journal, *, verify: bool) -> Prepared:
    """Look whether job *name* can be gone on with; changes nothing.

    *verify* reads the destination back, also if the job did not ask for it.  Raises
    `UsageError` for no such job, `Refused` for one that has ended or cannot be gone on with
    now, `PointInTimeLost`.
    """
    record = journal.record(name)
    if record is None:
        raise UsageError(f"there is no job {name} in the journal (see: dmcopy list)")
    reason = why_not_resumable(record)
    if reason is not None and record.lost:
        raise PointInTimeLost(reason)
    if reason is not None:
        raise Refused(
            f"job {name} cannot be resumed: {reason}",
            way_out="begin a new one: dmcopy copy"
            if is_final(record.state)
            else f"clear it away: dmcopy cancel {name}; then begin a new one",
        )
    assert record.facts is not None
    assert record.begun is not None
    begun = events.from_json(record.begun)
    assert isinstance(begun, events.Begun)
    spec = CopySpec.from_json(record.spec)
    done = journal.done(name)
    # Where all is on record nothing is read any more, whatever became of source and snapshot.
    all_done = sum(row.extent.length for row in done) == record.facts["source"]["length_sectors"]
    copied = all_done or record.state in (State.COPIED, State.VERIFIED)
    rebooted = record.facts["boot_id"] != host.sysfs.boot_id()
    source = source_now(record.facts, host, rebooted=rebooted, copied=copied)
    destination = parse_destination(spec.destination)
    cow = cow_of(record.facts, host.sysfs, rebooted=rebooted, copied=copied)
    files = [f for f in journal.leftovers(name) if f not in destination.leftovers()]
    if copied:
        standing: Standing = Over(host, name, files)
    elif rebooted:
        assert cow is not None
        log = journal.log_of(name)
        standing = _reassembled(record, source, spec, host, cow=cow, log=log, files=files)
    elif source.provider is Provider.SPLICE:
        retired = [Extent(row.extent.start, row.retired) for row in done if row.retired]
        standing = Taken(host, source, spec, retired=retired, files=files)
    else:
        standing = ClaimedAgain(source, host.sysfs, int(record.facts["idle_writes"]))
    mark = _mark(record.facts, destination, has_rows=bool(done))
    recorded = record.spec["identity"]
    destination.check(
        source.length,
        Surroundings(
            sysfs=host.sysfs,
            run=host.run,
            source=source.devno,
            overwrite_signature=True,  # what is on it now is, in part, the copy
            spare=spare_devices(cow),
            identity=recorded,
            resume=mark,
        ),
    )
    return Prepared(
        spec=spec if not verify else spec.verifying(),
        source=source,
        destination=destination,
        identity=recorded,
        segment=Sectors(record.facts["segment_sectors"]),
        cow=cow,
        standing=standing,
        earlier=Earlier(
            begun=begun,
            mark=mark,
            counts=record.facts["counts"],
            copied=copied,
            state=record.state,
            done=tuple(done),
            history=History.from_json(journal.history(name)),
        ),
    )


def _reassembled(
    record: Record,
    source: Source,
    spec: CopySpec,
    host: Host,
    *,
    cow: CowPlan,
    log: Sequence[Logged],
    files: Sequence[str],
) -> Reassembled:
    assert host.dm is not None
    assert source.table is not None
    assert source.dm_name is not None
    chunk = to_sectors(spec.chunk)
    spliced = reassembled(
        host.dm,
        host.sysfs,
        job=record.name,
        name=source.dm_name,
        path=source.path,
        original=source.table,
        store=store_now(cow, host.sysfs),
        room=room_on_record(cow, record, log),
        chunk=chunk,
        known=int(record.progress["exceptions"]) if record.progress is not None else 0,
        hold_limit=spec.hold_limit,
    )
    return Reassembled(spliced, source, chunk, host, job=record.name, files=files)


def _mark(
    facts: Mapping[str, Any],
    destination: Destination,
    *,
    has_rows: bool,  # Any: JSON
) -> Mapping[str, str | int] | None:
    """Give the mark to open the destination by; None where nothing of value is there."""
    there = any(os.path.lexists(path) for path in destination.leftovers())
    mark: Mapping[str, str | int] = facts["mark"]
    return mark if has_rows or there or not destination.leftovers() else None
