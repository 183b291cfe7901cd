"""Begin time: the instant that is copied, and how it is fixed.

A live dm device is *spliced*: its table moves to a ``-source`` device of ours, a persistent
snapshot is made over that, and ``snapshot-origin`` is swapped in on the live device by one
resume ioctl, in which the kernel suspends, swaps and resumes.  No user code runs while I/O
is held.  The snapshot is active *before* the swap, and the swap splits later writes at the
chunk size (dm-snap.c:origin_map); a snapshot made without a suspend and resume of its origin
is silently corrupt.

An idle device needs none of this: it is claimed with O_EXCL for the time of the copy.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin
from dmcopy.errors import DmBusy, DmcopyError, HoldLimitExceeded, Refused
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import CowDevices, CowFileOnHost, CowLv, CowPlan
from dmcopy.stack.discover import Source
from dmcopy.stack.gate_step import GateStep
from dmcopy.stack.hold import Instant, Swap
from dmcopy.stack.layers import Layers
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.plan import Plan, Step
from dmcopy.stack.steps import (
    AttachLoop,
    CowFile,
    CreateDevice,
    CreateLv,
    Flush,
    SyncFileSystems,
    WipeHead,
    head_length,
    node_path,
    restore_origin,
    with_table,
)
from dmcopy.stack.together import Meet, Part
from dmcopy.units import Sectors

_ATTEMPTS: Final = 3  # to meet others at an instant


class Splice(GateStep):
    """Swap snapshot-origin in on the live device: the begin gate.

    *limit* is the longest hold in seconds, here and when it is undone.
    """

    def __init__(
        self,
        dm: Dm,
        name: str,
        *,
        job: str,
        original: Table,
        ours: Callable[[], Table],
        limit: float,
        meet: Meet | None = None,
        lockfs: bool = True,
    ) -> None:
        """With *meet* the swap is a part of an instant that others have too.

        Without *lockfs* a file system that is mounted on the device is not frozen.
        """
        super().__init__(name, limit)
        self._dm = dm
        self._name = name
        self._job = job
        self._original = original
        self._ours = ours
        self._meet = meet
        self._lockfs = lockfs
        self.was_frozen = False  # by somebody else: it is in the image as that one left it
        self.instant: Instant | None = None
        self.end_held: float | None = None

    def __str__(self) -> str:
        return f"swap the table of {self._name}"

    def lines(self) -> Sequence[str]:
        load = with_table(["dmsetup", "load", self._name], self._ours())
        if self._meet is not None:  # who has the instant come about says what comes then
            return (load,)
        resume = ["dmsetup", "resume", *(() if self._lockfs else ("--nolockfs",)), self._name]
        return (load, shlex.join(resume))

    def do(self) -> None:
        lock_memory()
        self._check_unchanged()
        ours = self._ours()
        if self._meet is None:
            self.instant = self._swap(ours)
            return
        for attempt in range(_ATTEMPTS):
            self._dm.load(self._name, ours)
            try:
                self.instant = self._meet(self.part)
                break
            except BaseException as exc:
                self._dm.clear(self._name)
                if not isinstance(exc, HoldLimitExceeded) or attempt == _ATTEMPTS - 1:
                    raise
            # or it was let go with ours, and the image is one of that moment
            self._check_unchanged()
        live = self._dm.table(self._name)
        if live != ours:
            raise DmcopyError(f"the table of {self._name} is not what was loaded, but '{live}'")

    @property
    def part(self) -> Part:
        """What it has to do with an instant that others have too."""
        return Part(origin=self._name, lockfs=self._lockfs)

    def _check_unchanged(self) -> None:
        now = self._dm.table(self._name)
        if now != self._original:  # another was faster since it was looked at
            raise Refused(
                f"the table of {self._name} was changed meanwhile: '{now}', was '{self._original}'",
                way_out="see what changed it: dmcopy status",
            )

    def _swap(self, ours: Table) -> Instant:
        def swap(*, lockfs: bool) -> Instant:
            return Swap(
                dm=self._dm,
                name=self._name,
                limit=self._limit,
                lockfs=lockfs,
                sentry=self._sentry,
            )(ours)

        if not self._lockfs:
            return swap(lockfs=False)
        try:
            return swap(lockfs=True)
        except DmBusy:  # frozen already: by an administrator, or a hook (fs/super.c:freeze_super)
            self.was_frozen = True
            return swap(lockfs=False)

    def undo(self) -> None:
        self.stand_down()
        layers = Layers(self._dm, self._job)  # of the brake, where it is still on
        layers.let_go(limit=self._limit)
        held = restore_origin(
            self._dm, self._name, self._original, layers.is_origin, limit=self._limit
        )
        if held is not None:
            self.end_held = held
        layers.remove()


class Claim(Step):
    """Hold an idle device open with O_EXCL: nobody can mount it, no dm or md take it."""

    def __init__(self, path: str, sysfs: Sysfs, *, flush: bool = True) -> None:
        """With *flush* what lies in the page cache becomes part of the image."""
        self._path = path
        self._sysfs = sysfs
        self._flush = flush
        self._device: BlockDevice | None = None
        self.instant: Instant | None = None
        self.writes = 0

    def __str__(self) -> str:
        return f"claim {self._path} for the time of the copy"

    def lines(self) -> Sequence[str]:
        return (f"# {self}: open(O_RDONLY|O_EXCL)",)

    def do(self) -> None:
        self._device = BlockDevice.open(self._path, exclusive=True)
        if self._flush:
            self._device.flush()
        self.writes = self._sysfs.writes(self._device.devno)
        self.instant = Instant(begin_ns=time.time_ns(), held=0.0)

    def undo(self) -> None:
        if self._device is not None:
            self._device.close()
            self._device = None


class Attend(Step):
    """Be there at an instant that others have, with nothing to be held: an idle device."""

    def __init__(self, meet: Meet) -> None:
        self._meet = meet
        self.instant: Instant | None = None

    def __str__(self) -> str:
        return "wait for the others' instant"

    def lines(self) -> Sequence[str]:
        return ()

    def do(self) -> None:
        self.instant = self._meet(None)

    def undo(self) -> None:
        """Nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """A splice that can be run, and how to read the image once it was."""

    plan: Plan
    splice: Splice
    source: CreateDevice
    cow: CreateDevice
    snapshot: CreateDevice
    origin_table: Callable[[], Table]


def splice(
    dm: Dm,
    sysfs: Sysfs,
    *,
    job: str,
    source: Source,
    cow: CowPlan,
    chunk: Sectors,
    hold_limit: float,
    lvm: Lvm,
    meet: Meet | None = None,
    lockfs: bool = True,
) -> Spliced:
    """Make the plan that fixes a begin time on a live dm device; changes nothing.

    *source* must be spliceable (`discover`), *cow* checked.  `Plan.undo` takes everything
    out again and gives the origin the table that it has now.
    """
    name, original, length = source.dm_name, source.table, source.length
    assert name is not None
    assert original is not None

    def device(role: Role, table: Callable[[], Table]) -> CreateDevice:
        return CreateDevice(dm, device_name(job, role), device_uuid(job, role), table)

    under = device(Role.SOURCE, lambda: original)
    below_cow, cow_devno = _cow_steps(cow, job, sysfs, lvm)
    cow_device = device(Role.COW, lambda: Table.of(Linear(cow.length, cow_devno(), Sectors(0))))
    snapshot = device(
        Role.SNAP,
        lambda: Table.of(Snapshot(length, under.devno(), cow_device.devno(), chunk)),
    )

    def ours() -> Table:
        return Table.of(SnapshotOrigin(length, under.devno()))

    swap = Splice(
        dm, name, job=job, original=original, ours=ours, limit=hold_limit, meet=meet, lockfs=lockfs
    )
    sync = [SyncFileSystems(source.mounts)] if source.mounts and lockfs else []
    plan = Plan(
        job=job,
        prepare=[
            under,
            *below_cow,
            cow_device,
            *_later_devices(cow, device),
            WipeHead(node_path(sysfs, cow_device), head_length(chunk)),
            snapshot,
            *sync,
        ],
        critical=[swap],
        finish=[
            Flush("source", node_path(sysfs, under)),
            Flush("COW device", node_path(sysfs, cow_device)),
        ],
    )
    return Spliced(
        plan=plan,
        splice=swap,
        source=under,
        cow=cow_device,
        snapshot=snapshot,
        origin_table=ours,
    )


def _later_devices(
    cow: CowPlan, device: Callable[[Role, Callable[[], Table]], CreateDevice]
) -> list[Step]:
    """Claim the devices that are appended later, so that nobody takes one meanwhile.

    By a dm device: what dm has claimed, another dm device may use too (dm.c:_dm_claim_ptr).
    """
    later = cow.devices[1:]
    if not later:
        return []
    table = Table.of(*(Linear(one.length, one.devno, Sectors(0)) for one in later))
    return [device(Role.SPARE, lambda: table)]


def _cow_steps(
    cow: CowPlan, job: str, sysfs: Sysfs, lvm: Lvm
) -> tuple[list[Step], Callable[[], str]]:
    """Give the steps that make the COW device's lower device, and how it is called."""
    if isinstance(cow, CowDevices):
        devno = cow.devices[0].devno  # the others when it is full: `grow`
        return [], lambda: devno
    if isinstance(cow, CowFileOnHost):
        loop = AttachLoop(cow.path, sysfs)
        return [CowFile(cow.path, cow.size), loop], loop.devno
    assert isinstance(cow, CowLv)  # a snapshot of LVM's is no splice (`lvm_begin`)
    volume = CreateLv(cow, job, lvm)
    return [volume], volume.devno
