"""Begin times that are LVM's snapshots: of thick volumes, and of thin ones."""

from __future__ import annotations

from collections.abc import Callable

from dmcopy.core.table import Table
from dmcopy.core.targets.snapshot import SnapshotOrigin
from dmcopy.errors import DmcopyError, LeftBehind, PointInTimeLost
from dmcopy.jobs.host import Host
from dmcopy.jobs.standing import Json, Standing, cow_reading, frozen_already
from dmcopy.kernel.blkdev import locked
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.begin import Claim
from dmcopy.stack.cow import CowSnapshot
from dmcopy.stack.discover import Source
from dmcopy.stack.hold import Instant
from dmcopy.stack.lvm_begin import ThinSnapshot, lvm_begin, remove_volume
from dmcopy.stack.lvm_view import SnapshotVolume, snapshot_volume
from dmcopy.stack.names import lv_name, lv_tag
from dmcopy.stack.plan import Around, Plan
from dmcopy.stack.steps import SyncFileSystems
from dmcopy.stack.together import Meet


class LvmNow(Standing):
    """A snapshot that LVM makes now, under the live volume."""

    def __init__(
        self,
        host: Host,
        source: Source,
        cow: CowSnapshot,
        *,
        job: str,
        hold_limit: float,
        meet: Meet | None = None,
        lockfs: bool = True,
    ) -> None:
        assert host.dm is not None
        self._dm = host.dm
        self._sysfs = host.sysfs
        self._source = source
        self._job = job
        self._cow = cow
        self._begin = lvm_begin(
            host.dm,
            host.sysfs,
            job=job,
            source=source,
            cow=cow,
            hold_limit=hold_limit,
            lvm=Lvm(host.run),
            meet=meet,
            lockfs=lockfs,
        )
        self.plan = self._begin.plan

    def lines(self) -> tuple[str, ...]:
        return self._begin.plan.lines()

    def check(self) -> None:
        """A new begin time cannot be missing."""

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        with locked(self._source.node):
            self._begin.plan.run(record, around)
        if self._begin.instant.was_frozen:
            self.warnings = (frozen_already(self._source),)
        self.snapshot = self._sysfs.node(self._made().snapshot.devno)
        return self._begin.instant.instant

    def reading(self) -> Json:
        made = self._made()
        return cow_reading(
            self._sysfs,
            source=made.source.devno,
            cow=made.cow.devno,
            chunk=self._cow.chunk,
            snapshot_uuid=made.snapshot.uuid,
            origin=self._source.devno,
            origin_table=Table.of(SnapshotOrigin(self._source.length, made.source.devno)),
        )

    def end(self) -> float | None:
        self._begin.plan.undo()
        instant = self._begin.instant
        held, instant.end_held = instant.end_held, None
        return held

    def _made(self) -> SnapshotVolume:
        made = snapshot_volume(self._dm, self._job)
        if made is None:
            raise PointInTimeLost(f"the snapshot {self._cow} was removed")
        return made


class ThinNow(Standing):
    """A snapshot in a thin pool, made now; read like a device that nobody writes to."""

    def __init__(self, host: Host, source: Source, *, job: str) -> None:
        assert source.volume is not None
        self._sysfs = host.sysfs
        self._source = source
        self._vg = source.volume.vg
        self._made = ThinSnapshot(source.volume, lv_name(job), job, Lvm(host.run))
        sync = [SyncFileSystems(source.mounts)] if source.mounts else []
        self._plan = Plan(job=job, prepare=sync, critical=[self._made])
        self._claim: Claim | None = None
        self._devno = ""

    def lines(self) -> tuple[str, ...]:
        return self._plan.lines()

    def check(self) -> None:
        """A new begin time cannot be missing."""

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        with locked(self._source.node):
            self._plan.run(record, around)
        try:
            self._devno = self._made.devno()
            self._claim = Claim(self._sysfs.node(self._devno), self._sysfs, flush=False)
            self._claim.do()
        except BaseException:
            self.end()
            raise
        self.snapshot = self._sysfs.node(self._devno)
        return self._made.instant

    def reading(self) -> Json:
        assert self._claim is not None
        return thin_reading(self._sysfs.node(self._devno), self._devno, self._claim)

    def facts(self) -> Json:
        uuid = self._sysfs.dm_uuid(self._devno)
        return {"thin": {"vg": self._vg, "name": self._made.name, "uuid": uuid}}

    def end(self) -> float | None:
        if self._claim is not None:
            self._claim.undo()
            self._claim = None
        self._plan.undo()
        return None


class ThinAgain(Standing):
    """The thin snapshot of a job that was interrupted: nobody could write to it meanwhile."""

    def __init__(self, host: Host, thin: Json, *, job: str) -> None:
        """*thin* is what `ThinNow.facts` gave."""
        self._sysfs = host.sysfs
        self._lvm = Lvm(host.run)
        self._thin = dict(thin)
        self._job = job
        self._claim: Claim | None = None
        self._devno = ""

    def lines(self) -> tuple[str, ...]:
        return ("# go on with the thin snapshot that is there",)

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        self.check()
        self._claim = Claim(self._sysfs.node(self._devno), self._sysfs, flush=False)
        record(str(self._claim))
        self._claim.do()
        self.snapshot = self._sysfs.node(self._devno)
        return None

    def check(self) -> None:
        vg, name = str(self._thin["vg"]), str(self._thin["name"])
        found = self._lvm.lv(vg, name)
        if found is None or lv_tag(self._job) not in found.tags:
            raise PointInTimeLost(f"the thin snapshot {vg}/{name} was removed")
        if found.devno is None:
            raise DmcopyError(f"{vg}/{name} is not active; activate it: lvchange -ay {vg}/{name}")
        if self._sysfs.dm_uuid(found.devno) != self._thin["uuid"]:
            raise PointInTimeLost(f"the thin snapshot {vg}/{name} is another one than it was")
        if not self._sysfs.is_read_only(found.devno):
            raise PointInTimeLost(f"the thin snapshot {vg}/{name} can be written to")
        self._devno = found.devno

    def reading(self) -> Json:
        assert self._claim is not None
        return thin_reading(self._sysfs.node(self._devno), self._devno, self._claim)

    def facts(self) -> Json:
        return {"thin": self._thin}

    def end(self) -> float | None:
        if self._claim is not None:
            self._claim.undo()
            self._claim = None
        vg, name = str(self._thin["vg"]), str(self._thin["name"])
        try:
            remove_volume(self._lvm, vg, name, self._job)
        except DmcopyError as exc:
            raise LeftBehind([f"{vg}/{name}: {exc}"], job=self._job) from exc
        return None


def thin_reading(node: str, devno: str, claim: Claim) -> Json:
    """Give the part of the worker's request that says what is read."""
    return {"source_path": node, "cow": None, "idle": {"devno": devno, "writes": claim.writes}}
