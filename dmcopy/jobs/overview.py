"""What jobs there are, from the two things that know: the kernel and the journal."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from dmcopy.core.events import Begun, Ended, Paused, Progress, Resumed
from dmcopy.destinations.image import is_being_written
from dmcopy.errors import (
    DmcopyError,
    JournalDamaged,
    LeftBehind,
    PointInTimeLost,
    Refused,
    UsageError,
)
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock, holder
from dmcopy.jobs.membership import group_of, kin_of, members_of, why_no_instant
from dmcopy.jobs.resume import Outlook, look_ahead, was_kept, why_not_resumable
from dmcopy.jobs.state import State, is_final
from dmcopy.jobs.twins import clear_away
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.mdadm import Mdadm
from dmcopy.stack.counters import forget_counters
from dmcopy.stack.md_split_back import put_back, split_jobs, thaw_split
from dmcopy.stack.plan import signals_deferred
from dmcopy.stack.recover import (
    Remains,
    find_remains,
    let_go,
    remove_files,
    remove_lvs,
    take_apart,
)
from dmcopy.units import Sectors, to_bytes

log = logging.getLogger(__name__)

_PATIENTLY: Final = 10.0  # seconds that a busy journal is waited for
_BRIEFLY: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One job as it is now."""

    job: str
    state: str  # of the journal; "unknown" where only the kernel knows the job
    pid: int | None  # of the process that works on it
    remains: tuple[str, ...]  # what the kernel holds of it, in words
    record: Record | None
    files: tuple[str, ...] = ()  # that the journal says it may have left, and that are there
    log: tuple[tuple[float, Mapping[str, Any]], ...] = ()  # when, and what happened; Any: JSON
    is_unread: bool = False  # the journal may know it, but cannot be read
    no_way_on: str | None = None  # why it can never be resumed; None where it can, or runs
    not_now: str | None = None  # what is in the way of that, and may be put right
    members: tuple[JobView, ...] = ()  # of a group
    group: str | None = None  # that it is a member of
    leader: int | None = None  # pid of the process that leads its group

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended and left nothing."""
        return self.record is not None and is_final(self.record.state) and not self.is_dead

    @property
    def can_resume(self) -> bool:
        """Tell whether ``dmcopy resume`` goes on with it."""
        return self.is_dead and self.no_way_on is None

    @property
    def was_paused(self) -> bool:
        """Tell whether somebody paused it, or a volume of it: who goes on must be somebody too."""
        for one in (self, *self.members):
            last = [e["event"] for _, e in one.log if e["event"] in (Paused.event, Resumed.event)]
            if last and last[-1] == Paused.event:
                return True
        return False

    @property
    def is_kept(self) -> bool:
        """Tell whether the copy is whole, and its snapshot stays (``--keep``)."""
        record = self.record
        if record is None or is_final(record.state) or not was_kept(record):
            return False
        stays = bool(self.remains) or any(member.is_kept for member in self.members)
        return stays and self.pid is None

    @property
    def is_dead(self) -> bool:
        """Tell whether it stopped in the middle, or left something: rescue will help."""
        if self.pid is not None or self.leader is not None or self.is_kept:
            return False
        unfinished = self.record is not None and not is_final(self.record.state)
        return bool(self.remains or self.files) or unfinished

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy status --json`` prints."""
        record = self.record

        def last(kind: str) -> Mapping[str, Any] | None:  # Any: JSON
            return getattr(record, kind) if record is not None else None

        return {
            "event": "status",
            "job": self.job,
            "state": self.state,
            "pid": self.pid,
            "dead": self.is_dead,
            "kept": self.is_kept,
            "can_resume": self.can_resume,
            "no_way_on": self.no_way_on if self.is_dead else None,
            "not_now": self.not_now if self.is_dead else None,
            "source": record.spec["source"] if record else None,
            "destination": record.spec["destination"] if record else None,
            **_told_apart(record),
            "created": record.created if record else None,
            "devices": list(self.remains),
            "log": [{"at": at, **event} for at, event in self.log],
            Begun.event: last("begun"),
            Progress.event: last("progress"),
            Ended.event: last("ended"),
            **({"group": self.group} if self.group is not None else {}),
            **({"members": [member.job for member in self.members]} if self.members else {}),
        }


def _told_apart(record: Record | None) -> dict[str, Any]:  # Any: JSON
    """Give what tells a job's devices from others, and how it is copied; None: not known (yet)."""
    facts = (record.facts if record is not None else None) or {}
    sectors = facts.get("segment_sectors")
    return {
        "source_identity": facts.get("source", {}).get("identity"),
        "destination_identity": record.spec.get("identity") if record is not None else None,
        "provider": facts.get("provider"),
        "segment_bytes": to_bytes(Sectors(sectors)) if sectors is not None else None,
    }


def view_of(job: str, host: Host) -> JobView:
    """Give one job; raises `UsageError` when neither the journal nor the kernel knows it."""
    for view in overview(host, only=job):
        return view
    raise UsageError(f"there is no job {job}")


def overview(host: Host, *, only: str | None = None) -> list[JobView]:
    """Give all jobs that the journal or the kernel knows, oldest first; changes nothing.

    With *only* nobody looks at the others.
    """
    views, unread = look_over(host, only=only)
    if unread:  # what the kernel knows can be told all the same
        log.warning("%s", unread)
    return views


def look_over(
    host: Host, *, only: str | None = None, brief: bool = False, happened: bool = True
) -> tuple[list[JobView], str]:
    """Give the jobs as `overview` does, and why the journal could not be read, or "".

    *brief* is for who looks again and again: nothing is opened but the journal, the locks and the
    control node of device-mapper.  Whether an interrupted job can be gone on with is what the
    journal alone says of it, and nobody looks for files that jobs may have left.  Without
    *happened* what is in their logs is not read either.
    """
    remains = find_remains(host.dm, host.sysfs) if host.dm is not None else {}
    for job in split_jobs(host.places.splits):
        remains.setdefault(job, Remains(job)).split = True
    views: list[JobView] = []
    unread = ""
    try:
        if host.places.journal.exists():
            busy = _BRIEFLY if brief else _PATIENTLY
            with Journal(host.places.journal, read_only=True, busy=busy) as journal:
                views = _recorded(host, journal, remains, only, brief=brief, happened=happened)
    except JournalDamaged:
        raise
    except DmcopyError as exc:
        unread = str(exc)
    known = {view.job for view in views}
    return views + [
        replace(
            _view(job, host, None, remains[job], ()),
            no_way_on=unread or "it is not in the journal",
            is_unread=bool(unread),
        )
        for job in sorted(remains.keys() - known)
        if only in (None, job)
    ], unread


def _recorded(
    host: Host,
    journal: Journal,
    remains: Mapping[str, Remains],
    only: str | None,
    *,
    brief: bool,
    happened: bool,
) -> list[JobView]:
    """Give the jobs of the journal, or the one that is asked for."""
    records = {record.name: record for record in journal.records()}
    wanted = records if only is None else kin_of(only, records)
    views = {}
    for job in [name for name in records if name in wanted]:
        record = records[job]
        files = () if brief else _files(journal, job)
        view = _view(job, host, record, remains.get(job), files)
        if view.pid is None and not is_final(record.state):
            # It may have ended since all were read.  Its end is on record before its lock is free.
            record = records[job] = journal.record(job) or record
            view = replace(view, state=record.state, record=record)
        view = replace(view, log=tuple(journal.log_of(job)) if happened else ())
        view = replace(view, group=group_of(record))
        leader = records.get(view.group or "")
        if leader is not None:
            view = replace(view, leader=holder(host.places.locks, leader.name))
        if view.is_dead and not members_of(record):
            ahead = (
                Outlook(never=why_not_resumable(record))
                if brief
                else look_ahead(record, host, journal)
            )
            view = replace(view, no_way_on=ahead.never, not_now=ahead.not_now)
        views[job] = view
    for job, view in list(views.items()):
        if members_of(view.record):
            _join(job, views, records)
    return [view for job, view in views.items() if only in (None, job)]


def _join(group: str, views: dict[str, JobView], records: Mapping[str, Record]) -> None:
    """Put a group and its members together: all of them can be gone on with, or none."""
    names = [name for name in members_of(records[group]) if name in views]
    dead = [views[name] for name in names if views[name].is_dead]
    never = not_now = None
    if views[group].is_dead:
        never = why_no_instant(members_of(records[group]), records.get)
        never = never or next(
            (f"{one.job}: {one.no_way_on}" for one in dead if one.no_way_on), None
        )
        not_now = next((f"{one.job}: {one.not_now}" for one in dead if one.not_now), None)
        alive = [views[name] for name in names if views[name].pid is not None]
        not_now = next((f"{one.job} is at work yet (pid {one.pid})" for one in alive), not_now)
    for one in dead:
        why = one.no_way_on or (f"its group {group} cannot go on: {never}" if never else None)
        views[one.job] = replace(one, no_way_on=why)
    views[group] = replace(
        views[group],
        members=tuple(views[name] for name in names),
        no_way_on=never,
        not_now=not_now,
    )


def _files(journal: Journal, job: str) -> tuple[str, ...]:
    """Give the files that *job* may have left, but for those that a living job writes now."""
    there = (path for path in journal.leftovers(job) if os.path.lexists(path))
    return tuple(path for path in there if not is_being_written(path))


def _view(
    job: str, host: Host, record: Record | None, remains: Remains | None, files: tuple[str, ...]
) -> JobView:
    return JobView(
        job=job,
        state=record.state if record else "unknown",
        pid=holder(host.places.locks, job),
        remains=tuple(remains.lines()) if remains else (),
        record=record,
        files=files,
    )


@dataclass(frozen=True, kw_only=True)
class Rescued:
    """What was done for one dead job, and what could not be."""

    job: str
    done: tuple[str, ...]
    left: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy rescue --json`` prints."""
        return {
            "event": "rescued",
            "job": self.job,
            "done": list(self.done),
            "left": list(self.left),
        }


def let_writes_go(view: JobView, host: Host) -> None:
    """Let go of what a job holds that is kept; raises `LeftBehind`, and `Refused` if it lives."""
    with JobLock(host.places.locks, view.job):
        remains = find_remains(host.dm, host.sysfs).get(view.job) if host.dm is not None else None
        if remains is not None and host.dm is not None:
            left = let_go(host.dm, remains)
            if left:
                raise LeftBehind(left, job=view.job)
        thaw_split(host.places.splits / view.job)


def rescue(view: JobView, host: Host, *, end: State = State.FAILED) -> Rescued:
    """Put right what a dead job left, and record that it came to *end*.

    Of a group what all its members left.  Raises `Refused` when it is alive after all.
    """
    if view.members:
        return _rescue_group(view, host, end)
    with JobLock(host.places.locks, view.job):
        done: tuple[str, ...] = ()
        left: tuple[str, ...] = ()
        try:
            done = tuple(clear_away(host, view.job, view.record.spec if view.record else None))
        except (DmcopyError, OSError) as exc:
            left = (f"the private device over the copy: {exc}",)
        remains = find_remains(host.dm, host.sysfs).get(view.job) if host.dm is not None else None
        if remains is not None and host.dm is not None:
            taken = take_apart(host.dm, remains)
            done, left = (*done, *taken.done), (*left, *taken.left)
        with signals_deferred():
            back, kept = put_back(host.places.splits / view.job, host.sysfs, Mdadm(host.run))
        done, left = (*done, *back), (*left, *kept)
        _forget_counters(view, host)
        if _may_have_lv(view, remains):
            removed, kept = remove_lvs(Lvm(host.run), view.job)
            done, left = (*done, *removed), (*left, *kept)
        files = remains.cow_files() if remains is not None else set()
        if view.record is None:
            removed, kept = remove_files(sorted(files))
        else:
            with Journal(host.places.journal, create=False) as journal:
                removed, kept = remove_files(sorted(files.union(_files(journal, view.job))))
                if not left and not kept:
                    journal.forget_leftovers(view.job)
                    _give_up(journal, view.job, end)
        return Rescued(job=view.job, done=(*done, *removed), left=(*left, *kept))


def _rescue_group(view: JobView, host: Host, end: State) -> Rescued:
    assert view.record is not None
    done: list[str] = []
    left: list[str] = []
    with JobLock(host.places.locks, view.job):
        for member in view.members:
            if member.is_dead or member.is_kept:
                result = rescue(member, host, end=end)
                done += [f"{member.job}: {line}" for line in result.done]
                left += [f"{member.job}: {line}" for line in result.left]
        if not left:
            with Journal(host.places.journal, create=False) as journal:
                members = [journal.record(one.job) for one in view.members]
                whole = all(one is not None and one.state == State.ENDED for one in members)
                _give_up(journal, view.job, end, is_copied=whole)
    return Rescued(job=view.job, done=tuple(done), left=tuple(left))


def _give_up(journal: Journal, job: str, end: State, *, is_copied: bool = False) -> None:
    """Record how it ended, unless it came to an end by itself since somebody looked."""
    record = journal.record(job)
    if record is not None and not is_final(record.state):
        journal.move(job, State.ENDED if is_copied or was_kept(record) else end)


def rescue_member(record: Record, host: Host, journal: Journal, *, why: str) -> tuple[str, ...]:
    """Put right what is left of a member whose group is given up; gives what stays."""
    try:
        journal.lost(record.name, why)  # whoever goes on later must never believe in it
        return rescue(_view(record.name, host, record, None, ()), host, end=State.CANCELLED).left
    except DmcopyError as exc:
        return (f"{record.name}: {exc}",)


def give_up(job: str, host: Host, journal: Journal, why: PointInTimeLost) -> DmcopyError:
    """Put right what a job left whose point in time is lost; give the error to raise.

    Raises `Refused` when another works on it, or has ended it: what somebody is in the middle of
    may look lost to who only looks.
    """
    with JobLock(host.places.locks, job):
        record = journal.record(job)
        if record is not None and is_final(record.state):
            raise Refused(
                f"job {job} was worked on by another process meanwhile",
                way_out=f"look again: dmcopy show {job}",
            ) from why
        journal.lost(job, str(why))
    spec = record.spec if record is not None else {}
    result = rescue(_view(job, host, record, None, ()), host)
    if result.left:
        return LeftBehind(result.left, job=job)
    again = f"dmcopy copy {spec.get('source')} {spec.get('destination')}"
    return PointInTimeLost(
        f"point in time lost: {why}; everything is put back; begin anew: {again}"
    )


def _forget_counters(view: JobView, host: Host) -> None:
    """Take away the counters of a job that died before there was anything else of it."""
    if host.dm is None or view.record is None:
        return
    with suppress(OSError):
        number = os.stat(view.record.spec["source"]).st_rdev
        name = host.sysfs.dm_name(f"{os.major(number)}:{os.minor(number)}")
        if name:
            forget_counters(host.dm, name, view.job)


def _may_have_lv(view: JobView, remains: Remains | None) -> bool:
    """Tell whether it is worth asking LVM, which takes a second: an LV may be inactive."""
    asked = view.record.spec.get("cow", {}) if view.record is not None else {}
    return asked.get("vg") is not None or (remains is not None and bool(remains.lvs))
