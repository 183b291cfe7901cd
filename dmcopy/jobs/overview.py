"""What jobs there are, from the two things that know: the kernel and the journal."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dmcopy.core.events import Begun, Ended, Progress
from dmcopy.destinations.image import is_being_written
from dmcopy.errors import DmcopyError, JournalDamaged, LeftBehind, PointInTimeLost, UsageError
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock, holder
from dmcopy.jobs.resume import look_ahead, was_kept
from dmcopy.jobs.state import State, is_final
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.counters import forget_counters
from dmcopy.stack.recover import (
    Remains,
    find_remains,
    let_go,
    remove_files,
    remove_lvs,
    take_apart,
)

log = logging.getLogger(__name__)


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

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended and left nothing."""
        return self.record is not None and is_final(self.record.state) and not self.is_dead

    @property
    def can_resume(self) -> bool:
        """Tell whether ``dmcopy resume`` goes on with it."""
        return self.is_dead and self.no_way_on is None

    @property
    def is_kept(self) -> bool:
        """Tell whether the copy is whole, and its snapshot stays (``--keep``)."""
        record = self.record
        if record is None or is_final(record.state) or not was_kept(record):
            return False
        return bool(self.remains) and self.pid is None

    @property
    def is_dead(self) -> bool:
        """Tell whether it stopped in the middle, or left something: rescue will help."""
        if self.pid is not None or self.is_kept:
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
            "created": record.created if record else None,
            "devices": list(self.remains),
            "log": [{"at": at, **event} for at, event in self.log],
            Begun.event: last("begun"),
            Progress.event: last("progress"),
            Ended.event: last("ended"),
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
    remains = find_remains(host.dm, host.sysfs) if host.dm is not None else {}
    if only is not None:
        remains = {job: those for job, those in remains.items() if job == only}
    views: list[JobView] = []
    unread = ""
    try:
        if host.places.journal.exists():
            with Journal(host.places.journal, read_only=True) as journal:
                views = _recorded(host, journal, remains, only)
    except JournalDamaged:
        raise
    except DmcopyError as exc:  # what the kernel knows can be told all the same
        log.warning("%s", exc)
        unread = str(exc)
    known = {view.job for view in views}
    return views + [
        replace(
            _view(job, host, None, remains[job], ()),
            no_way_on=unread or "it is not in the journal",
            is_unread=bool(unread),
        )
        for job in sorted(remains.keys() - known)
    ]


def _recorded(
    host: Host, journal: Journal, remains: Mapping[str, Remains], only: str | None
) -> list[JobView]:
    """Give the jobs of the journal, or the one that is asked for."""
    views = []
    for record in journal.records():
        job = record.name
        if only not in (None, job):
            continue
        view = _view(job, host, record, remains.get(job), _files(journal, job))
        view = replace(view, log=tuple(journal.log_of(job)))
        if view.is_dead:
            ahead = look_ahead(record, host, journal)
            view = replace(view, no_way_on=ahead.never, not_now=ahead.not_now)
        views.append(view)
    return views


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


def rescue(view: JobView, host: Host, *, end: State = State.FAILED) -> Rescued:
    """Put right what a dead job left, and record that it came to *end*.

    Raises `Refused` when it is alive after all.
    """
    with JobLock(host.places.locks, view.job):
        done: tuple[str, ...] = ()
        left: tuple[str, ...] = ()
        remains = find_remains(host.dm, host.sysfs).get(view.job) if host.dm is not None else None
        if remains is not None and host.dm is not None:
            done, left, _ = take_apart(host.dm, remains)
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
                    if not is_final(view.record.state):
                        journal.move(view.job, State.ENDED if was_kept(view.record) else end)
        return Rescued(job=view.job, done=(*done, *removed), left=(*left, *kept))


def give_up(job: str, host: Host, journal: Journal, why: PointInTimeLost) -> DmcopyError:
    """Put right what a job left whose point in time is lost; give the error to raise."""
    journal.lost(job, str(why))
    record = journal.record(job)
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
