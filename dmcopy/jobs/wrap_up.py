"""Bring a wrap up: over the snapshot of an unfinished job where there is one, else plain.

Whatever is wrong with the job, the machine must boot: then the wrap comes up plain, and what
became of the point in time is said, and on record.  *Lost* is only what is known to be: a job
whose COW device is not there yet may still be resumed, if nobody writes before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from dmcopy.core.events import Warned
from dmcopy.core.table import Table
from dmcopy.errors import DmcopyError, LeftBehind, PointInTimeLost, Refused
from dmcopy.jobs import stamps
from dmcopy.jobs.after_boot import cow_of, room_on_record, store_now
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.resume import why_not_resumable
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.state import State
from dmcopy.jobs.wrap_config import Wrap
from dmcopy.kernel import lasting
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.kernel.patience import again
from dmcopy.stack.cow import CowPlan
from dmcopy.stack.discover import Provider, in_use
from dmcopy.stack.recover import find_remains, take_apart
from dmcopy.stack.steps import remove_device
from dmcopy.stack.wrap import (
    Store,
    plain,
    refuse_other_table,
    under_wrap,
    with_snapshot,
    wrap_table,
    wrap_uuid,
)
from dmcopy.units import to_sectors

log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 0.2
_BEGUN: Final = frozenset({State.BEGUN, State.COPYING, State.PAUSED})


@dataclass
class BroughtUp:
    """What was done, a line each; *lost*: the point in time of a job is gone."""

    said: list[str] = field(default_factory=list)
    lost: PointInTimeLost | None = None


def device_under(wrap: Wrap, host: Host) -> str:
    """Give the device that the wrap is to be over, by devno; raises `Refused`."""
    found = lasting.find(wrap.under, host.sysfs, host.run)
    if not found:
        raise Refused(
            f"the device under wrap {wrap.name} is not there ({wrap.under}; it was {wrap.device})",
            way_out=f"attach it, then: dmcopy wrap --up {wrap.name}",
        )
    if len(found) > 1:
        names = " and ".join(f"/dev/{host.sysfs.kname(devno)}" for devno in found)
        raise Refused(
            f"{names} are both {wrap.under}, and one is a copy of the other",
            way_out=f"detach the copy, or give it a name of its own, then: "
            f"dmcopy wrap --up {wrap.name}",
        )
    return found[0]


def bring_up(wrap: Wrap, host: Host, *, patience: float) -> BroughtUp:
    """Have the wrap up; nothing is done when it is.

    A COW device that is not there is waited for, *patience* seconds at most.  Raises `Refused`
    when the device under it is missing, smaller than it was, or in use past the wrap.
    """
    dm = _dm(host)
    devno = device_under(wrap, host)
    path = f"/dev/{host.sysfs.kname(devno)}"
    if _is_up(dm, wrap, devno):
        return BroughtUp([f"{wrap.name} is up, over {path}"])
    jobs = _Jobs(wrap, host)
    size = host.sysfs.size(devno)
    if size < wrap.size:
        jobs.are_lost(f"{path} has {size} bytes, and had {wrap.size}")
        raise Refused(
            f"{path} under wrap {wrap.name} is smaller than it was: {size} bytes, not {wrap.size}",
            way_out=f"find out why; then dmcopy unwrap {wrap.name}, and wrap it again",
        )
    for job in jobs.names:
        _clear_away(dm, host, job)
    used = [user for user in in_use(devno, host.sysfs) if not user.startswith("open in")]
    if used:
        jobs.are_lost(f"{path} was {used[0]} past its wrap {wrap.name}")
        raise Refused(
            f"{path} under wrap {wrap.name} is in use ({used[0]}), past the wrap",
            way_out=f"stop that, then: dmcopy wrap --up {wrap.name}",
        )
    original = wrap_table(to_sectors(wrap.size), devno)
    done = jobs.reassemble(dm, path, original, patience=patience)
    if not jobs.stands:
        _run(plain(dm, wrap.name, original).run)
        done.said.append(f"{wrap.name} is up, over {path}")
    if size > wrap.size:
        done.said.append(
            f"{path} has grown to {size} bytes; to have {wrap.name} grow as well: dmcopy unwrap "
            f"{wrap.name}, and wrap it again"
        )
    return done


def _dm(host: Host) -> Dm:
    if host.dm is None:
        raise Refused("this kernel has no device-mapper", way_out="see: dmcopy doctor")
    return host.dm


def _run(run: Callable[[Callable[[str], None]], None]) -> None:
    """Run a plan that no journal keeps; raises `LeftBehind` with the right words for a wrap."""
    try:
        run(lambda what: log.info("%s", what))
    except LeftBehind as exc:
        raise LeftBehind(exc.left) from exc


def is_ours(info: DmInfo, name: str) -> bool:
    """Tell whether the dm device is the wrap of that name."""
    return info.uuid == wrap_uuid(name)


def _is_up(dm: Dm, wrap: Wrap, devno: str) -> bool:
    """Tell whether the wrap is up; one that is half made, or over what is gone, is removed."""
    info = dm.info(wrap.name)
    if info is None:
        return False
    if not is_ours(info, wrap.name):
        raise Refused(
            f"there is a dm device {wrap.name} that is no wrap (uuid '{info.uuid}')",
            way_out="rename or remove it (dmsetup), or wrap under another name",
        )
    if info.live and under_wrap(dm, info) == devno:
        return True
    if info.open_count:
        raise Refused(
            f"wrap {wrap.name} is in use, over a device that is gone",
            way_out=f"stop what uses it, then: dmcopy wrap --up {wrap.name}",
        )
    remove_device(dm, wrap.name, wrap_uuid(wrap.name))
    return False


def _clear_away(dm: Dm, host: Host, job: str) -> None:
    """Remove what a killed `bring_up` had made; the exception store stays."""
    remains = find_remains(dm, host.sysfs).get(job)
    if remains is not None and not remains.origins:
        _, left, _ = take_apart(dm, remains)
        if left:
            raise LeftBehind(left, job=job)


def jobs_on(name: str, journal: Journal) -> list[Record]:
    """Give the jobs on wrap *name* that a snapshot is to stand for, the latest first."""
    found = []
    for record in journal.records():
        source = (record.facts or {}).get("source")
        if not source or record.state not in _BEGUN or why_not_resumable(record) is not None:
            continue
        if (record.facts or {}).get("provider") != Provider.SPLICE:
            continue
        copied = sum(row.extent.length for row in journal.done(record.name))
        if source["identity"].get("dm_uuid") == wrap_uuid(name) and (
            copied != source["length_sectors"]
        ):
            found.append(record)
    return found[::-1]


class _Jobs:
    """The unfinished jobs on one wrap; at most one of them can stand."""

    def __init__(self, wrap: Wrap, host: Host) -> None:
        self._wrap = wrap
        self._host = host
        self._done = BroughtUp()
        self.stands = False
        self._records: list[Record] = []
        path = host.places.journal
        try:
            if path.exists():
                with Journal(path, create=False) as journal:
                    self._records = jobs_on(wrap.name, journal)
        except (DmcopyError, OSError) as exc:
            self._warn(
                f"{exc}: if a job was under way on {wrap.name}, its point in time is lost with "
                "the first write"
            )

    @property
    def names(self) -> list[str]:
        """The jobs, the latest first."""
        return [record.name for record in self._records]

    def are_lost(self, why: str) -> None:
        """Record that every point in time on this wrap is gone."""
        for record in self._records:
            self._lost(record.name, PointInTimeLost(why))

    def reassemble(self, dm: Dm, path: str, original: Table, *, patience: float) -> BroughtUp:
        """Bring the wrap up over the latest job's snapshot, if that can be; see `stands`.

        *path* is what is under the wrap, *original* its plain table.
        """
        for record in self._records[1:]:
            why = f"job {self._records[0].name} began later on the same device"
            self._lost(record.name, PointInTimeLost(why))
        if not self._records:
            return self._done
        record = self._records[0]
        try:
            with (
                JobLock(self._host.places.locks, record.name),
                Journal(self._host.places.journal, create=False) as journal,
            ):
                stamps.refuse_stranger(journal, record, path)
                self._reassemble(dm, path, original, record, journal, patience=patience)
            self.stands = True
            self._done.said.append(
                f"{self._wrap.name} is up, over {path} and the snapshot of job {record.name}; go "
                f"on with it: dmcopy resume {record.name}"
            )
        except PointInTimeLost as exc:
            self._lost(record.name, exc)
        except (DmcopyError, OSError) as exc:
            self._warn(
                f"job {record.name} cannot be gone on with now: {exc}; its point in time is lost "
                f"with the first write to {self._wrap.name}",
                job=record.name,
            )
        return self._done

    def _reassemble(
        self,
        dm: Dm,
        path: str,
        original: Table,
        record: Record,
        journal: Journal,
        *,
        patience: float,
    ) -> None:
        assert record.facts is not None
        facts = record.facts
        refuse_other_table(original, Table.parse(facts["source"]["table"]))
        cow, place = self._wait_for_cow(facts, patience)
        chunk = to_sectors(CopySpec.from_json(record.spec).chunk)
        plan = with_snapshot(
            dm,
            self._host.sysfs,
            job=record.name,
            name=self._wrap.name,
            path=path,
            original=original,
            store=Store(
                place=place,
                room=room_on_record(cow, record, journal.log_of(record.name)),
                chunk=chunk,
                known=int(record.progress["exceptions"]) if record.progress is not None else 0,
            ),
            tell=lambda: journal.set_facts(record.name, self._facts(dm, facts, cow, original)),
        )
        plan.run(lambda what: journal.intend(record.name, what))

    def _facts(
        self,
        dm: Dm,
        facts: Any,  # Any: JSON
        cow: CowPlan,
        original: Table,
    ) -> dict[str, Any]:  # Any: JSON
        """Give what the journal has of the job, in the numbers of this boot.

        Recorded before the wrap is shown: whoever resumes the job from then on looks for the
        snapshot in the kernel.
        """
        sysfs = self._host.sysfs
        info = dm.info(self._wrap.name)
        assert info is not None
        (devno,) = original.devices()
        # sysfs has no dm device before its first table is loaded (dm.c:dm_setup_md_queue)
        kname = f"dm-{info.devno.partition(':')[2]}"
        identity = {**facts["source"]["identity"], "devno": info.devno, "kname": kname}
        return {
            **facts,
            "boot_id": sysfs.boot_id(),
            "source": {
                **facts["source"],
                "devno": info.devno,
                "table": str(original),
                "identity": identity,
                "below": {devno: sysfs.identity(devno)},
            },
            "cow": cow.as_json(),
        }

    def _wait_for_cow(self, facts: Any, patience: float) -> tuple[CowPlan, Any]:  # Any: JSON
        """Find the COW device; other devices and file systems come up beside us."""

        def find() -> tuple[CowPlan, Any]:  # Any: JSON
            cow = cow_of(facts, self._host.sysfs, rebooted=True, copied=False)
            assert cow is not None
            return cow, store_now(cow, self._host.sysfs)

        return again(find, on=Refused, seconds=patience, pause=_PAUSE_SECONDS)

    def _lost(self, job: str, why: PointInTimeLost) -> None:
        lost = PointInTimeLost(
            f"the point in time of job {job} is lost: {why}; clear it away: dmcopy cancel {job}; "
            "then begin a new one"
        )
        self._done.lost = self._done.lost or lost
        self._record(job, str(lost), lost=str(why))

    def _warn(self, message: str, *, job: str | None = None) -> None:
        self._done.said.append(message)
        if job is not None:
            self._record(job, message)

    def _record(self, job: str, message: str, *, lost: str | None = None) -> None:
        """Put it on record with the job; the boot goes on where that cannot be."""
        try:
            with Journal(self._host.places.journal, create=False) as journal:
                if lost is not None:
                    journal.lost(job, lost)
                journal.log(job, Warned(job=job, message=message).as_json())
        except (DmcopyError, OSError) as exc:
            log.warning("%s", exc)
