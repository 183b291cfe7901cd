"""Begin time of a logical volume: LVM makes the snapshot, and the instant is fixed anew by ioctls.

``lvcreate --snapshot`` makes LVM's metadata right, takes half a second, and nobody can tell when in
it the instant was.  So its exception store is thrown away and begun anew (KERNEL.md 13): the
snapshot's table is replaced by ``error``, which ends the store; the head of the COW device is
wiped; the snapshot's own table is loaded, which makes an empty store that saves nothing while it is
not live; and then the origin is held, the snapshot made live, and the origin let go (`together`).
Loading the same table without ``error`` between would hand the old exceptions over
(dm-snap.c:snapshot_ctr, snapshot_handover).  The suspend and resume of the origin splits later
writes at the chunk size, as for every snapshot.

Several volumes, and others that are spliced, meet at one instant by `Meet`.

A thin volume's snapshot is made by LVM and stays as it is: the begin time is some moment while
``lvcreate`` runs, for all its I/O at once.

Kernel: drivers/md/dm-snap.c (snapshot_ctr, snapshot_resume, origin_resume),
drivers/md/dm-snap-persistent.c (persistent_read_metadata).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

from dmcopy.core.table import Table
from dmcopy.core.targets.error import Error
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin, SnapshotStatus
from dmcopy.errors import (
    CommandFailed,
    DmBusy,
    DmcopyError,
    HoldLimitExceeded,
    PointInTimeLost,
)
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.lvm import (
    Lvm,
    Volume,
    dm_name,
    snapshot_argv,
    thin_snapshot_argv,
)
from dmcopy.kernel.lvm_lock import wait_for_vg
from dmcopy.kernel.patience import again
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import CowSnapshot
from dmcopy.stack.discover import Source
from dmcopy.stack.gate_step import GateStep
from dmcopy.stack.hold import Instant
from dmcopy.stack.layers import Layers
from dmcopy.stack.lvm_view import snapshot_volume
from dmcopy.stack.names import TAG, Role, lv_tag
from dmcopy.stack.plan import Plan, Step
from dmcopy.stack.steps import (
    Flush,
    SyncFileSystems,
    head_length,
    restore_origin,
    with_table,
)
from dmcopy.stack.together import Meet, Part, together
from dmcopy.units import Bytes, Sectors

_ATTEMPTS: Final = 3
_BUSY_SECONDS: Final = 10.0
_BUSY_PAUSE_SECONDS: Final = 0.2


class _How(TypedDict):
    extents: int
    chunk: Sectors
    tags: Sequence[str]


class SnapshotLv(Step):
    """The snapshot, as LVM makes it; it carries our tags."""

    def __init__(self, volume: Volume, cow: CowSnapshot, job: str, lvm: Lvm) -> None:
        self._volume = volume
        self._cow = cow
        self._job = job
        self._lvm = lvm
        self._somebody_elses = False

    def __str__(self) -> str:
        return f"create {self._cow}"

    def lines(self) -> Sequence[str]:
        volume, cow = self._volume, self._cow
        return (shlex.join(snapshot_argv(volume.vg, volume.name, cow.name, **self._how())),)

    def do(self) -> None:
        volume, cow = self._volume, self._cow
        if self._lvm.lv(cow.vg, cow.name) is not None:
            self._somebody_elses = True
            raise DmcopyError(
                f"{cow} is there already; if it is of a job that died: dmcopy rescue {self._job}"
            )
        self._lvm.snapshot(volume.vg, volume.name, cow.name, **self._how())

    def undo(self) -> None:
        if not self._somebody_elses:
            remove_volume(self._lvm, self._cow.vg, self._cow.name, self._job)

    def _how(self) -> _How:
        cow = self._cow
        tags = (TAG, lv_tag(self._job))
        return {"extents": cow.extents(cow.size), "chunk": cow.chunk, "tags": tags}


def remove_volume(lvm: Lvm, vg: str, name: str, job: str) -> None:
    """Remove an LV of ours if it is there; waits a while for others to close it.

    A killed worker's descriptors close only when its last I/O has ended.
    """
    again(
        lambda: lvm.remove(vg, name, tag=lv_tag(job)),
        on=CommandFailed,
        seconds=_BUSY_SECONDS,
        pause=_BUSY_PAUSE_SECONDS,
    )


class LvmInstant(GateStep):
    """Begin the exception store anew while the origin is held: the begin gate of an LV.

    *limit* is the longest hold in seconds, here and when it is undone.
    """

    def __init__(
        self,
        dm: Dm,
        sysfs: Sysfs,
        *,
        job: str,
        volume: Volume,
        cow: CowSnapshot,
        length: Sectors,
        limit: float,
        meet: Meet | None = None,
        lockfs: bool = True,
    ) -> None:
        """With *meet* it is a part of an instant that others have too.

        Without *lockfs* a file system that is mounted on the volume is not frozen.
        """
        self._origin = dm_name(volume.vg, volume.name)
        super().__init__(self._origin, limit)
        self._dm = dm
        self._sysfs = sysfs
        self._job = job
        self._length = length
        self._chunk = cow.chunk
        self._meet = meet or self._alone
        self._lockfs = lockfs
        self.was_frozen = False  # by somebody else: it is in the image as that one left it
        self._meets_others = meet is not None
        self._snapshot = dm_name(cow.vg, cow.name)
        self._source = dm_name(volume.vg, volume.name, "real")
        self._cow = dm_name(cow.vg, cow.name, "cow")
        self.instant: Instant | None = None
        self.end_held: float | None = None

    def __str__(self) -> str:
        return f"begin the snapshot anew while {self._origin} is held"

    def lines(self) -> Sequence[str]:
        load = ["dmsetup", "load", self._snapshot]
        wipe = f"bs={head_length(self._chunk)} count=1 oflag=direct conv=fsync,notrunc"
        armed = (
            with_table(load, self._nothing()),
            shlex.join(["dmsetup", "resume", self._snapshot]),
            f"dd if=/dev/zero of=/dev/mapper/{self._cow} {wipe}",
            with_table(load, self._saving()),
        )
        if self._meets_others:  # who has the instant come about says what comes then
            return armed
        how = () if self._lockfs else ("--nolockfs",)
        return (
            *armed,
            shlex.join(["dmsetup", "suspend", *how, self._origin]),
            shlex.join(["dmsetup", "resume", self._snapshot]),
            shlex.join(["dmsetup", "resume", self._origin]),
        )

    def do(self) -> None:
        for attempt in range(_ATTEMPTS):
            self._arm()
            try:
                self.instant = self._meet(self.part)
                break
            except HoldLimitExceeded:
                if attempt == _ATTEMPTS - 1:
                    raise
            except DmBusy:  # as in `begin.Splice`: its file system is frozen already
                if not self.part.lockfs or attempt == _ATTEMPTS - 1:
                    raise
                self.was_frozen = True
        self._check()

    @property
    def part(self) -> Part:
        """What it has to do with an instant that others have too."""
        lockfs = self._lockfs and not self.was_frozen
        return Part(origin=self._origin, lockfs=lockfs, then=(self._snapshot,))

    def undo(self) -> None:
        self.stand_down()
        if self._dm.info(self._snapshot) is not None:
            # LVM cannot remove a snapshot while a loaded table holds what is under it
            self._dm.clear(self._snapshot)
        layers = Layers(self._dm, self._job)  # of the brake, where it is still on
        source = layers.info(Role.SOURCE)
        if source is None:
            return
        layers.let_go(limit=self._limit)
        full = Table.of(SnapshotOrigin(self._length, source.devno))

        def is_ours(table: Table) -> bool:
            return table != full and layers.is_origin(table)

        held = restore_origin(self._dm, self._origin, full, is_ours, limit=self._limit)
        if held is not None:
            self.end_held = held
        layers.remove()

    def _arm(self) -> None:
        """End the store that is there, and load the table that begins an empty one."""
        saving = self._saving()
        self._dm.load(self._snapshot, self._nothing())
        self._dm.resume(self._snapshot, lockfs=False, flush=False)
        with BlockDevice.open(self._sysfs.node(self._devno(self._cow)), write=True) as cow:
            cow.zero(Bytes(0), head_length(self._chunk))
            cow.flush()
        self._dm.load(self._snapshot, saving)

    def _alone(self, part: Part | None) -> Instant:
        assert part is not None
        (instant,) = together(self._dm, [part], limit=self._limit, sentry=self._sentry)
        return instant

    def _check(self) -> None:
        expected = (
            (self._origin, Table.of(SnapshotOrigin(self._length, self._devno(self._source)))),
            (self._snapshot, self._saving()),
        )
        for name, table in expected:
            live = self._dm.table(name)
            if live != table:
                raise DmcopyError(f"the table of {name} is '{live}', not '{table}'")
        (said,) = self._dm.status(self._snapshot, flush=False)
        if not SnapshotStatus.parse(said.text).is_valid:
            # a load that fills the COW device before we have looked at it
            raise PointInTimeLost(
                f"the snapshot is no longer valid: the kernel says '{said.text}' of "
                f"{self._snapshot}, because the COW device is full or failed"
            )

    def _nothing(self) -> Table:
        return Table.of(Error(self._length))

    def _saving(self) -> Table:
        source, cow = self._devno(self._source), self._devno(self._cow)
        return Table.of(Snapshot(self._length, source, cow, self._chunk))

    def _devno(self, name: str) -> str:
        """Give "major:minor" of a device once it exists, else its path for a dry run."""
        info = self._dm.info(name)
        return info.devno if info is not None else f"/dev/mapper/{name}"


class ThinSnapshot(Step):
    """A snapshot in the volume's pool, which nobody can write to; it carries our tags.

    The begin time is some moment of the time that LVM takes for it.
    """

    def __init__(self, volume: Volume, name: str, job: str, lvm: Lvm) -> None:
        self._volume = volume
        self.name = name
        self._job = job
        self._lvm = lvm
        self._somebody_elses = False
        self.instant: Instant | None = None

    def __str__(self) -> str:
        return f"create thin snapshot {self._volume.vg}/{self.name}"

    def lines(self) -> Sequence[str]:
        argv = thin_snapshot_argv(self._volume.vg, self._volume.name, self.name, tags=self._tags)
        return (shlex.join(argv),)

    def get_ready(self) -> None:
        """Wait for LVM's lock while nobody waits for us."""
        wait_for_vg(self._volume.vg)

    def do(self) -> None:
        vg = self._volume.vg
        if self._lvm.lv(vg, self.name) is not None:
            self._somebody_elses = True
            raise DmcopyError(
                f"{vg}/{self.name} is there already; if it is of a job that died: "
                f"dmcopy rescue {self._job}"
            )
        wait_for_vg(vg)  # not a part of the time in which the begin time lies
        start = time.monotonic()  # first: begin_ns + held must not lie before the end
        begin_ns = time.time_ns()
        self._lvm.thin_snapshot(vg, self._volume.name, self.name, tags=self._tags)
        self.instant = Instant(begin_ns=begin_ns, held=time.monotonic() - start)

    def undo(self) -> None:
        if not self._somebody_elses:
            remove_volume(self._lvm, self._volume.vg, self.name, self._job)

    def devno(self) -> str:
        """Give "major:minor" of the snapshot; raises `DmcopyError` when it is not active."""
        made = self._lvm.lv(self._volume.vg, self.name)
        if made is None or made.devno is None:
            raise DmcopyError(f"{self._volume.vg}/{self.name} was made, but is not active")
        return made.devno

    @property
    def _tags(self) -> tuple[str, str]:
        return TAG, lv_tag(self._job)


@dataclass(frozen=True, kw_only=True)
class LvmBegin:
    """A snapshot by LVM that can be made, and how to know it once it is there."""

    plan: Plan
    instant: LvmInstant


def lvm_begin(
    dm: Dm,
    sysfs: Sysfs,
    *,
    job: str,
    source: Source,
    cow: CowSnapshot,
    hold_limit: float,
    lvm: Lvm,
    meet: Meet | None = None,
    lockfs: bool = True,
) -> LvmBegin:
    """Make the plan that fixes a begin time on a thick LV; changes nothing.

    *source* must be a volume (`lvm_source`), *cow* planned for it.  `Plan.undo` removes the
    snapshot, and LVM gives the volume its table back.
    """
    volume = source.volume
    assert volume is not None
    instant = LvmInstant(
        dm,
        sysfs,
        job=job,
        volume=volume,
        cow=cow,
        length=source.length,
        limit=hold_limit,
        meet=meet,
        lockfs=lockfs,
    )

    def node(role: Role) -> Callable[[], str]:
        def path() -> str:
            made = snapshot_volume(dm, job)
            info = made.info(role) if made is not None else None
            return sysfs.node(info.devno) if info is not None else f"/dev/mapper/{names[role]}"

        return path

    names = {
        Role.SOURCE: dm_name(volume.vg, volume.name, "real"),
        Role.COW: dm_name(cow.vg, cow.name, "cow"),
    }
    sync = [SyncFileSystems(source.mounts)] if source.mounts and lockfs else []
    plan = Plan(
        job=job,
        prepare=[SnapshotLv(volume, cow, job, lvm), *sync],
        critical=[instant],
        finish=[Flush("source", node(Role.SOURCE)), Flush("COW device", node(Role.COW))],
    )
    return LvmBegin(plan=plan, instant=instant)
