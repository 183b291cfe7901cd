"""Go on with a job that was interrupted, as of the begin time that it had.

What must be so: the journal has the begin time and what is durable at the destination; the
source is the device it was; and every write since the begin time was saved - or, for an
idle device, there was none.  Whatever cannot be shown is *point in time lost*, with the
reason: never a guess.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dmcopy.core import events
from dmcopy.core.extent import Extent
from dmcopy.core.history import History
from dmcopy.destinations.base import Destination, Surroundings
from dmcopy.errors import DmcopyError, PointInTimeLost, Refused, UsageError
from dmcopy.jobs.after_boot import cow_of, room_on_record, source_now, store_now
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Logged, Record
from dmcopy.jobs.lvm_standing import ThinAgain
from dmcopy.jobs.prepare import Earlier, Prepared, spare_devices
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.standing import Standing
from dmcopy.jobs.standing_again import ClaimedAgain, Over, Reassembled, Taken
from dmcopy.jobs.state import State, is_final
from dmcopy.jobs.twins import was_begun
from dmcopy.jobs.whereabouts import destination_now
from dmcopy.stack.cow import CowPlan
from dmcopy.stack.discover import Provider, Source
from dmcopy.stack.reassemble import CheckStore, reassembled
from dmcopy.units import Sectors, to_sectors


def was_kept(record: Record) -> bool:
    """Tell whether the copy is complete, and its snapshot was to stay (``--keep``)."""
    return record.ended is not None and bool(record.ended.get("kept"))


def why_not_resumable(record: Record) -> str | None:
    """Say why the journal alone rules out going on with a job; None when it does not."""
    if is_final(record.state):
        return f"it is {record.state}"
    if record.begun is None or record.facts is None:
        return "it was interrupted before its begin time was fixed"
    if record.facts["provider"] == Provider.MD_SPLIT:
        return "the member that it was split off goes back into its array when a job ends"
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
    destination, recorded = destination_now(
        spec.destination, record.spec["identity"], host.sysfs, host.run
    )
    if recorded is not record.spec["identity"]:  # it has another name by now
        spec = replace(spec, destination=str(destination))
    cow = cow_of(record.facts, host.sysfs, rebooted=rebooted, copied=copied)
    files = [f for f in journal.leftovers(name) if f not in destination.leftovers()]
    if copied:
        standing: Standing = Over(host, name, files)
    elif source.provider is Provider.LVM_THIN:
        standing = ThinAgain(host, record.facts["thin"], job=name)
    elif source.provider is Provider.LVM:
        standing = _by_lvm(record, source, spec, host, journal, cow=cow, rebooted=rebooted)
    elif rebooted:
        assert cow is not None
        log = journal.log_of(name)
        standing = _reassembled(record, source, spec, host, cow=cow, log=log, files=files)
    elif source.provider is Provider.SPLICE:
        retired = [Extent(row.extent.start, row.retired) for row in done if row.retired]
        standing = Taken(host, source, spec, retired=retired, files=files)
    else:
        standing = ClaimedAgain(source, host.sysfs, int(record.facts["idle_writes"]))
    if verify and was_begun(record.facts):
        raise Refused(
            f"{destination} has an identity of its own by now, or half of it: it cannot be read "
            "back as the image any more",
            way_out=f"go on without it: dmcopy resume {name}",
        )
    mark = _mark(record.facts, destination, has_rows=bool(done))
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
            renewing=was_begun(record.facts),
            state=record.state,
            done=tuple(done),
            history=History.from_json(journal.history(name)),
        ),
    )


def _by_lvm(
    record: Record,
    source: Source,
    spec: CopySpec,
    host: Host,
    journal: Journal,
    *,
    cow: CowPlan | None,
    rebooted: bool,
) -> Taken:
    """Go on with LVM's snapshot: LVM puts it under the volume again before anybody can write."""
    assert cow is not None
    done = journal.done(record.name)
    known = int(record.progress["exceptions"]) if record.progress is not None else 0
    room = room_on_record(cow, record, journal.log_of(record.name))

    def store(path: str) -> CheckStore:
        return CheckStore(
            lambda: path,
            room=room,
            source=source.length,
            chunk=to_sectors(spec.chunk),
            known=known,
        )

    return Taken(
        host,
        source,
        spec,
        retired=[Extent(row.extent.start, row.retired) for row in done if row.retired],
        files=(),
        store=store if rebooted else None,
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
