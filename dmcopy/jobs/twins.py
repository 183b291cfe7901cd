"""A copy is its source's twin: kept out of sight while it is made, told of, made different.

While a job works, its destination is hidden from udev (`kernel.shelter`).  When everything is
copied, and verified, and complete, `TwinStep.finish` says what the copy has in common with its
source, or gives it an identity of its own (``--new-identity``).  That is on record before the
first write: from then on the destination is no longer the image byte for byte, and no resume may
read it back for one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from dmcopy.core import events
from dmcopy.destinations.base import Destination
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.image import ImageDestination
from dmcopy.errors import DmcopyError, IdentityFailed, Interrupted, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock, holder
from dmcopy.jobs.whereabouts import destination_now, is_gone
from dmcopy.kernel.blkdev import devno as devno_text
from dmcopy.kernel.content import Content, content_of
from dmcopy.kernel.identity import difference
from dmcopy.kernel.loop import LoopDevice
from dmcopy.kernel.shelter import Shelter, publish, whole_disk_locked
from dmcopy.stack.identity import Renewed, by_hand, check, renew
from dmcopy.stack.twin import Bench, take_down

FACT: Final = "new_identity"  # in the job's facts: begun | done


def check_new_identity(host: Host, source: str, destination: Destination) -> None:
    """Raise `Refused` when a copy of *source* cannot be given a new identity; changes nothing."""
    if host.dm is None:
        raise Refused(
            "--new-identity works on a private dm device, and this kernel has no device-mapper",
            way_out="leave it out, and change the copy where it is used",
        )
    if not isinstance(destination, BlockDestination | ImageDestination):
        raise Refused(
            f"{destination} is neither a device nor an image file here",
            way_out="leave --new-identity out",
        )
    content = check(host.run, source, content_of(host.run, source))
    _refuse_unsheltered(Shelter(host.places.runtime), source, content)


def _refuse_unsheltered(shelter: Shelter, path: str, content: Content) -> None:
    """Raise `Refused` where what is inside has to be active meanwhile, and udev would see it."""
    kinds = {content.kind, *(part.content.kind for part in content.parts if part.content)}
    found = sorted(kinds & {"LVM2_member", "linux_raid_member"})
    if found and not shelter.works:
        raise Refused(
            f"{path} carries {found[0]}, and dmcopy's udev rule, which hides what is in it while "
            "it is changed, is not installed",
            way_out="install it (dmcopy doctor says how), or leave --new-identity out",
        )


def was_begun(facts: Mapping[str, Any] | None) -> bool:  # Any: JSON
    """Tell whether the destination may differ from the image by its identity, on purpose."""
    return bool(facts and facts.get(FACT))


class TwinStep:
    """What one job does about its destination being a twin."""

    def __init__(
        self,
        host: Host,
        journal: Journal | None,
        *,
        job: str,
        source: str,
        destination: Destination,
        identity: Mapping[str, str | int] | None,
    ) -> None:
        """*identity* is the destination's, as recorded; *source* a path."""
        self._host = host
        self._journal = journal
        self._job = job
        self._source = source
        self._destination = destination
        self._identity = identity
        self._shelter = Shelter(host.places.runtime)
        self._seen: Content | None = None
        self._has_looked = False  # when everything was complete
        self.renewed = False

    @property
    def path(self) -> str:
        """Where the copy is; "" where it is nothing that can be looked at."""
        if isinstance(self._destination, BlockDestination | ImageDestination):
            return self._destination.path
        return ""

    def devno(self) -> str | None:
        """Give the destination's number; None for a file, or when it is not there."""
        if isinstance(self._destination, BlockDestination):
            with suppress(OSError):
                devno = self._host.sysfs.devno_of(self._destination.path)
                if self._identity is None or not is_gone(self._identity, self._host.sysfs):
                    return devno
        return None

    @contextmanager
    def sheltered(self) -> Iterator[None]:
        """Keep udev from the destination; it stays hidden until `settle`.

        Raises `Refused` when somebody else has the disk locked.
        """
        devno = self.devno()
        if devno is None:
            yield
            return
        with whole_disk_locked(self._host.sysfs, devno):
            self._shelter.hide(devno, self._job)
            yield

    def settle(self, *, written: bool) -> None:
        """End hiding: from here on the copy is hidden only as long as it is a twin.

        Not *written*: nothing of the destination is ours.  Raises nothing.
        """
        devno = self.devno()
        with suppress(OSError):
            if devno is not None and written:
                twin = () if self.renewed else self._common()
                self._shelter.forget_twin(devno)
                if twin:
                    self._shelter.keep_twin(devno, twin)
            for name in self._shelter.hidden_by(self._job):
                self._shelter.unhide(name)
            if devno is not None and written:
                publish(self._host.sysfs, devno)

    def forget_gone(self) -> None:
        """Hide what was unplugged no more: its number is another device's soon.  Raises nothing."""
        if self._identity is not None and is_gone(self._identity, self._host.sysfs):
            with suppress(OSError):
                self._shelter.unhide(str(self._identity["devno"]))

    def _common(self) -> tuple[str, ...]:
        """Give the identities that the destination shares with the source, or may share."""
        here = self._seen if self._has_looked else self._look(self.path)
        if here is None:
            return ()
        there = self._look(self._source)
        mine = tuple(here.uuids())
        if there is None:  # it is not there any more: nobody knows
            return mine
        shared = set(there.uuids())
        return tuple(one for one in mine if one in shared)

    def _look(self, path: str) -> Content | None:
        with suppress(DmcopyError, OSError):
            return content_of(self._host.run, path) if path else None
        return None

    def finish(self, *, new: bool) -> events.Twin | None:
        """Say what the copy has in common with its source, or with *new* let it have that no more.

        None when it carries nothing known.  Raises `IdentityFailed`.
        """
        return self.renew() if new else self._told()

    def _told(self) -> events.Twin | None:
        content = self._seen = self._look(self.path)
        self._has_looked = True
        if content is None:
            return None
        return events.Twin(
            job=self._job,
            destination=str(self._destination),
            new=False,
            identity=tuple(content.lines()),
            hidden=self.devno() is not None and self._shelter.works,
            by_hand=by_hand(content, self.path),
        )

    def renew(self) -> events.Twin:
        """Give the copy a new identity; that it is begun, and that it is done, is on record.

        Raises `IdentityFailed`, or `Interrupted`, which say how far it came.
        """
        done = Renewed()
        try:
            with self._private() as (bench, path):
                content = check(self._host.run, path, content_of(self._host.run, path))
                _refuse_unsheltered(self._shelter, self.path, content)
                self._record("begun")  # durable before the first write
                renew(bench, path, content, done, "")
        except Interrupted as exc:
            raise Interrupted(self._failed(done, exc)) from exc
        except (DmcopyError, OSError) as exc:
            raise IdentityFailed(self._failed(done, exc)) from exc
        self._record("done")
        self.renewed = True
        return events.Twin(
            job=self._job,
            destination=str(self._destination),
            new=True,
            identity=tuple(done.changed),
            kept=tuple(done.kept),
        )

    def _failed(self, done: Renewed, exc: Exception) -> str:
        state = f"is changed in part ({'; '.join(done.changed)})" if done.changed else "is not new"
        return (
            f"the copy on {self.path} is complete, but its identity {state}: {exc}; do not use it "
            f"beside {self._source}; again: dmcopy identity {self.path} --new"
        )

    def _record(self, state: str) -> None:
        if self._journal is None:
            return
        record = self._journal.record(self._job)
        if record is not None:
            self._journal.set_facts(self._job, {**(record.facts or {}), FACT: state})

    @contextmanager
    def _private(self) -> Iterator[tuple[Bench, str]]:
        """Give a bench, and a device that only it knows, over the copy."""
        bench = bench_of(self._host, self._job)
        with ExitStack() as stack:
            devno = self.devno()
            if devno is None:
                devno = stack.enter_context(_loop(self.path, self._shelter, self._job))
            else:
                self._refuse_other(devno)
            yield bench, stack.enter_context(bench.twin(devno))

    def _refuse_other(self, devno: str) -> None:
        old = self._identity
        key = difference(old, self._host.sysfs.identity(devno)) if old is not None else None
        if key is not None:
            raise Refused(f"{self.path} is not the device that was written: another {key}")


def bench_of(host: Host, job: str) -> Bench:
    """Give what the work on a twin needs."""
    assert host.dm is not None
    return Bench(
        run=host.run,
        dm=host.dm,
        sysfs=host.sysfs,
        shelter=Shelter(host.places.runtime),
        job=job,
        mounts=host.places.mounts,
    )


@contextmanager
def _loop(path: str, shelter: Shelter, job: str) -> Iterator[str]:
    """Give the devno of a loop device over an image file that udev does not look at."""
    hidden: list[str] = []

    def before(fd: int) -> None:
        hidden.append(devno_text(os.fstat(fd).st_rdev))
        shelter.hide(hidden[-1], job)
        # until it is closed, which takes the device down; where udev does not ask for it there
        # is the mark
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    try:
        with LoopDevice.attach(path, before=before) as loop:
            yield loop.devno
    finally:
        for devno in hidden:
            shelter.unhide(devno)


def mend(host: Host, job: str, record: Record | None) -> None:
    """Take away the private device of a killed control, which would be in the way of a resume.

    Raises `Refused` when the job is alive after all, `DmcopyError` for what resists.
    """
    if host.dm is None or record is None or not was_begun(record.facts):
        return
    with JobLock(host.places.locks, job):
        take_down(bench_of(host, job))


def clear_away(host: Host, job: str, record: Mapping[str, Any] | None) -> list[str]:  # Any: JSON
    """Put right what a killed control left of a twin; gives what was done.

    *record* is the job's spec, where the journal has it.  Raises `DmcopyError`.
    """
    done = take_down(bench_of(host, job)) if host.dm is not None else []
    shelter = Shelter(host.places.runtime)
    if record is not None and shelter.hidden_by(job):
        where = destination_now(
            record["destination"], record.get("identity", {}), host.sysfs, host.run
        )
        step = TwinStep(
            host,
            None,
            job=job,
            source=record["source"],
            destination=where.destination,
            identity=where.identity or None,
        )
        step.settle(written=True)
    for name in shelter.hidden_by(job):
        shelter.unhide(name)
    return done


def sweep(host: Host, unfinished: Collection[str]) -> list[str]:
    """Hide no more what is left hidden by a job that is over; gives what was done.

    Such a job was killed in the moment after its end was on record.
    """
    shelter = Shelter(host.places.runtime)
    done = []
    for name, job in shelter.hidden():
        if job not in unfinished and holder(host.places.locks, job) is None:
            shelter.unhide(name)
            done.append(f"{name} was hidden from udev by job {job}, and is no more")
            if name[0].isdecimal():
                publish(host.sysfs, name)
    return done
