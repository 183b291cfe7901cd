"""Go on with a group that was interrupted: with all of its volumes, or with none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dmcopy.core import events
from dmcopy.errors import DmcopyError, LeftBehind, PointInTimeLost, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.membership import copy_again, members_of, why_no_instant
from dmcopy.jobs.overview import rescue, view_of
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.resume import prepare_resume, was_kept
from dmcopy.jobs.state import State, is_final


class GoingOn(NamedTuple):
    """A group that can be gone on with."""

    prepared: tuple[Prepared, ...]  # the volumes that are not there yet
    over: tuple[str, ...]  # the others


def prepare_group(record: Record, host: Host, journal: Journal, *, verify: bool) -> GoingOn:
    """Look whether the group can be gone on with; changes nothing.

    Raises `Refused` for one that cannot, or not now, and `PointInTimeLost` for one of whose
    volumes the point in time is.
    """
    name = record.name
    if is_final(record.state):
        raise Refused(
            f"job {name} cannot be resumed: it is {record.state}",
            way_out="begin a new one: dmcopy copy",
        )
    if was_kept(record):
        raise Refused(
            f"job {name} cannot be resumed: the copy is complete, and only its snapshots were kept",
            way_out=f"end it: dmcopy cancel {name}",
        )
    names = members_of(record)
    why = why_no_instant(names, journal.record)
    if why is not None:
        raise Refused(
            f"job {name} cannot be resumed: {why}",
            way_out=f"clear it away: dmcopy cancel {name}; then begin a new one",
        )
    records = [journal.record(one) for one in names]
    over = tuple(one.name for one in records if one is not None and _is_over(one))
    prepared = []
    for one in names:
        if one not in over:
            prepared.append(_prepared(one, host, journal, verify=verify))
    return GoingOn(tuple(prepared), over)


def _is_over(record: Record) -> bool:
    return record.state == State.ENDED or was_kept(record)


def _prepared(name: str, host: Host, journal: Journal, *, verify: bool) -> Prepared:
    try:
        prepared = prepare_resume(name, host, journal, verify=verify)
        prepared.standing.check()
    except PointInTimeLost as exc:
        with JobLock(host.places.locks, name):  # else somebody is in the middle of it
            journal.lost(name, str(exc))
        raise PointInTimeLost(f"{name}: {exc}") from exc
    return prepared


def give_up_group(record: Record, host: Host, why: PointInTimeLost) -> DmcopyError:
    """Put everything right; give the error to raise."""
    result = rescue(view_of(record.name, host), host)
    if result.left:
        return LeftBehind(result.left, job=record.name)
    return PointInTimeLost(
        f"point in time lost: {why}; everything is put back; begin anew: {copy_again(record.spec)}"
    )


def finish(record: Record, host: Host, journal: Journal) -> events.Ended:
    """Put on record that a group has ended, all of whose members have: its leader was killed."""
    members = [journal.record(name) for name in members_of(record)]
    last = [one.ended for one in members if one is not None and one.ended is not None]
    event = _ended(record, last)
    with JobLock(host.places.locks, record.name):
        journal.note(record.name, "ended", event.as_json())
        if not event.kept:
            journal.move(record.name, State.ENDED)
    return event


def _ended(record: Record, last: Sequence[object]) -> events.Ended:
    found = [events.from_json(one) for one in last if isinstance(one, dict)]
    ended = [one for one in found if isinstance(one, events.Ended)]

    def total(field: str) -> int:
        return sum(getattr(one, field) for one in ended)

    return events.Ended(
        job=record.name,
        state=ended[0].state,
        exit_status=0,
        source=record.spec["source"],
        destination=record.spec["destination"],
        begin_time=ended[0].begin_time,
        seconds=max(one.seconds for one in ended),
        bytes_total=total("bytes_total"),
        bytes_source=total("bytes_source"),
        bytes_cow=total("bytes_cow"),
        bytes_zero=total("bytes_zero"),
        bytes_resumed=total("bytes_resumed"),
        exceptions=total("exceptions"),
        cow_used_bytes=None,
        hold_seconds=(),
        digest=None,
        verified=all(one.verified for one in ended),
        kept=any(one.kept for one in ended),
        members=tuple({"job": one.job, "digest": one.digest} for one in ended),
    )
