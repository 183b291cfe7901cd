"""The COW device of a running job is made larger, before the kernel needs the room.

dm-snapshot asks for the size of its COW device at each exception that it makes
(dm-snap-persistent.c:persistent_prepare_exception), so more room counts at once, and the
snapshot is not touched.  First what is under it grows: the file behind the loop device, the LV, or
nothing where the user named several devices.  Then a longer linear table is swapped in on the
``-cow`` device.  That holds the origin's writes which wait for the COW device, and so it
is done as every hold is: one ioctl, a dead man.

Killed at any point, what is left is valid: the old table over an old or longer file, or the new
table.  What is in use is read from the kernel, never from a record, so that another process
can go on where this one ended.

When to grow is not decided here.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.errors import CommandFailed, CowCannotGrow
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.loop import set_capacity
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.lvm import dm_name as lvm_name
from dmcopy.kernel.lvm_lock import VgLocked
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import CowDevice, CowDevices, CowFileOnHost, CowLv, CowPlan, CowSnapshot
from dmcopy.stack.hold import Swap
from dmcopy.stack.names import Role, device_name
from dmcopy.stack.plan import signals_deferred
from dmcopy.units import (
    MIB,
    SECTOR_SIZE,
    Bytes,
    Sectors,
    format_size,
    round_down,
    round_up,
    sectors_down,
    to_bytes,
    to_sectors,
)

log = logging.getLogger(__name__)

_PIECE: Final = Bytes(256 * MIB)  # a file is allocated in such steps
_LEAST_STEP: Final = Bytes(64 * MIB)
_STEP_SHARE: Final = 8  # a step is one eighth of what there is


class Growing(ABC):
    """Makes one job's COW device larger; to be used from the main thread (the dead man is)."""

    holds: list[float]  # seconds that each swap held writes
    takes_time = False  # too much for writers that fill what is left meanwhile

    @property
    @abstractmethod
    def size(self) -> Bytes:
        """What it has now."""

    @abstractmethod
    def can_grow_to(self) -> Bytes:
        """Give the limit that was planned."""

    @abstractmethod
    def grow(self, to: Bytes) -> Bytes:
        """Make it at least *to* large; gives the new size; raises `CowCannotGrow`."""

    def step(self) -> Bytes:
        """Give the size after one step of the usual length, or the limit if that is nearer."""
        now = self.size
        return min(self.can_grow_to(), Bytes(now + max(_LEAST_STEP, now // _STEP_SHARE)))


class Grower(Growing):
    """Swaps a longer table in on the job's ``-cow`` device."""

    def __init__(
        self, dm: Dm, name: str, room: Room, *, chunk: Sectors, most: Bytes, hold_limit: float
    ) -> None:
        """*name* is the ``-cow`` device, *most* where growth ends; `grower` is the way in."""
        self._dm = dm
        self._name = name
        self._room = room
        self._chunk = chunk
        self._most = most
        self._hold_limit = hold_limit
        self.holds: list[float] = []  # seconds that each swap held writes

    @property
    def size(self) -> Bytes:
        """What the ``-cow`` device has now."""
        return to_bytes(self._dm.table(self._name).length)

    def can_grow_to(self) -> Bytes:
        """Give the limit that was planned; whether the room is still there shows in `grow`."""
        return max(self._most, self.size)

    def grow(self, to: Bytes) -> Bytes:
        """Make it at least *to* large, in whole chunks or devices; gives the new size.

        Never shrinks; gives less where only a part of the room was there.  Raises
        `CowCannotGrow` when there was none, and what `Swap` raises: then it is as it was.
        """
        now = self._dm.table(self._name)
        if to <= to_bytes(now.length):
            return to_bytes(now.length)
        whole = round_up(Sectors(-(-to // SECTOR_SIZE)), self._chunk)
        to = min(to_bytes(whole), self._most)
        if to <= to_bytes(now.length):
            raise CowCannotGrow(
                f"{self._room} has reached its limit of {format_size(to_bytes(now.length))}"
            )
        table = self._room.extend(now, to)
        if not _extends(table, now):
            raise CowCannotGrow(
                f"the table of {self._name} is not that of {self._room}: '{now}' cannot become "
                f"'{table}'"
            )
        self._swap(table)
        return to_bytes(table.length)

    def _swap(self, table: Table) -> None:
        # Without lockfs and flush: there is no file system on it, and it need not be empty.
        # It cannot wait for itself: nothing that we do meanwhile is written to the origin.
        swap = Swap.necessary(self._dm, self._name, self._hold_limit)
        lock_memory()
        with signals_deferred():
            held = swap(table).held
        self.holds.append(held)
        log.info(
            "%s is %s now; held for %.4f s",
            self._name,
            format_size(to_bytes(table.length)),
            held,
        )


def grower(
    plan: CowPlan, *, job: str, dm: Dm, sysfs: Sysfs, lvm: Lvm, chunk: Sectors, hold_limit: float
) -> Growing:
    """Give what makes the COW device of *plan* larger, once the job's ``-cow`` device is there.

    *chunk* is that of the snapshot, *hold_limit* the longest hold in seconds.
    """
    if isinstance(plan, CowSnapshot):
        return SnapshotGrower(plan, dm, lvm)
    room: Room
    if isinstance(plan, CowDevices):
        room = DeviceRoom(plan.devices)
    elif isinstance(plan, CowFileOnHost):
        room = FileRoom(plan.path, sysfs)
    else:
        room = LvRoom(plan, sysfs, lvm)
    name = device_name(job, Role.COW)
    return Grower(dm, name, room, chunk=chunk, most=plan.most, hold_limit=hold_limit)


class Room(ABC):
    """What is under the ``-cow`` device."""

    @abstractmethod
    def __str__(self) -> str:
        """Say what it is."""

    @abstractmethod
    def extend(self, now: Table, to: Bytes) -> Table:
        """Have room up to *to*, and give the table that uses it; *now* is the live one.

        The table may be shorter than *to* where there was less room, and ends later where
        room comes in large pieces.  Raises `CowCannotGrow`.
        """


class DeviceRoom(Room):
    """Devices of the user's, one behind the other."""

    def __init__(self, devices: tuple[CowDevice, ...]) -> None:
        self._devices = devices

    def __str__(self) -> str:
        return f"the COW device on {', '.join(device.path for device in self._devices)}"

    def extend(self, now: Table, to: Bytes) -> Table:
        """Take whole devices until it is enough; the kernel claims each (dm_get_device)."""
        rows: list[Linear] = []
        for device in self._devices:
            rows.append(Linear(device.length, device.devno, Sectors(0)))
            if sum(row.length for row in rows) >= to_sectors(to):
                break
        return Table.of(*rows)


class FileRoom(Room):
    """A file behind a loop device."""

    def __init__(self, path: Path, sysfs: Sysfs) -> None:
        self._path = path
        self._sysfs = sysfs

    def __str__(self) -> str:
        return f"the COW file {self._path}"

    def extend(self, now: Table, to: Bytes) -> Table:
        """Allocate, then tell the loop device."""
        devno = _only_device(now)
        try:
            reached = self._allocate(to_bytes(now.length), to)
            set_capacity(self._sysfs.node(devno))
        except OSError as exc:
            raise CowCannotGrow(f"{self} cannot grow: {exc.strerror}") from exc
        return Table.of(Linear(to_sectors(reached), devno, Sectors(0)))

    def _allocate(self, start: Bytes, to: Bytes) -> Bytes:
        """Allocate from *start* on, piece by piece; gives where it ends.

        So that the host's file system cannot run out underneath.  A piece that fails is given
        back; those before it stay.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # longer than the table where a process was killed between the two
            length = os.fstat(fd).st_size
            at: int = start
            while at < to:
                piece = min(_PIECE, to - at)
                try:
                    os.posix_fallocate(fd, at, piece)
                except OSError as exc:
                    os.ftruncate(fd, max(length, at))
                    if at == start:
                        raise self._no_room(to, exc) from exc
                    log.warning("%s grows to %s only: %s", self, format_size(at), exc.strerror)
                    break
                at += piece
            return Bytes(at)
        finally:
            os.close(fd)

    def _no_room(self, to: Bytes, exc: OSError) -> CowCannotGrow:
        stat = os.statvfs(self._path)
        free = format_size(stat.f_bavail * stat.f_frsize)
        return CowCannotGrow(
            f"{self} cannot grow to {format_size(to)}: {exc.strerror}; {free} are free in "
            f"{self._path.parent}; make room there"
        )


class LvRoom(Room):
    """An LV of ours."""

    def __init__(self, plan: CowLv, sysfs: Sysfs, lvm: Lvm) -> None:
        self._plan = plan
        self._sysfs = sysfs
        self._lvm = lvm

    def __str__(self) -> str:
        return f"the COW device, {self._plan},"

    def extend(self, now: Table, to: Bytes) -> Table:
        """Let LVM extend it.

        LVM suspends and resumes the LV for that, with no dead man of ours: 0.1 s were seen.
        It runs in a session of its own, so that it ends well when we do not.
        """
        devno = _only_device(now)
        if self._sysfs.size(devno) < to:
            extend_volume(self._lvm, self._plan, to, there=self._sysfs.size(devno))
        length = min(self._sysfs.size(devno), to)
        whole = round_down(sectors_down(length), self._plan.chunk)
        return Table.of(Linear(whole, devno, Sectors(0)))


class SnapshotGrower(Growing):
    """Has LVM make the COW device of its snapshot larger.

    LVM holds the origin for that, with no dead man of ours: 0.1 s were seen.  It reloads the
    origin's table too, so that all of it is saved again until it is retired anew; and it fails
    while a layer of ours (the brake, the gate) has the volume's own device open.
    """

    takes_time = True

    def __init__(self, plan: CowSnapshot, dm: Dm, lvm: Lvm) -> None:
        self._plan = plan
        self._dm = dm
        self._lvm = lvm
        self._name = lvm_name(plan.vg, plan.name, "cow")
        self.holds: list[float] = []  # what LVM holds is not known

    @property
    def size(self) -> Bytes:
        """What it has now."""
        return to_bytes(self._dm.table(self._name).length)

    def can_grow_to(self) -> Bytes:
        """Give the limit that was planned; whether the room is still there shows in `grow`."""
        return max(self._plan.most, self.size)

    def grow(self, to: Bytes) -> Bytes:
        """Make it at least *to* large; gives the new size; raises `CowCannotGrow`."""
        there = self.size
        to = min(to, self._plan.most)
        if to <= there:
            raise CowCannotGrow(f"{self._plan} has reached its limit of {format_size(there)}")
        with signals_deferred():
            extend_volume(self._lvm, self._plan, to, there=there)
        return self.size


def extend_volume(lvm: Lvm, plan: CowLv | CowSnapshot, to: Bytes, *, there: Bytes) -> None:
    """Extend to the extents of *to*, or by all that is free where that is less.

    *there* is what it has.  Raises `CowCannotGrow`.
    """
    extents = plan.extents(to)
    try:
        lvm.extend(plan.vg, plan.name, extents=extents)
    except (CommandFailed, VgLocked) as exc:
        vg = lvm.vg(plan.vg)
        now = there // vg.extent
        reached = min(extents, now + vg.free // vg.extent)
        if reached <= now or reached == extents:
            raise CowCannotGrow(
                f"the COW device, {plan}, cannot grow: {exc}; {format_size(vg.free)} are free in "
                f"volume group {vg.name}; add a device to it: vgextend {vg.name} DEVICE"
            ) from exc
        log.warning("%s grows by what is left in volume group %s: %s", plan, vg.name, exc)
        lvm.extend(plan.vg, plan.name, extents=reached)


def _only_device(table: Table) -> str:
    devices = sorted(table.devices())
    if len(devices) != 1:
        raise CowCannotGrow(f"a COW device of one piece has the table '{table}'")
    return devices[0]


def _extends(table: Table, old: Table) -> bool:
    """Tell whether *table* maps all that *old* maps to the same place, and more."""
    if len(table) < len(old) or not len(old) or table.length <= old.length:
        return False
    *before, last = old.rows
    if list(table.rows[: len(before)]) != before:
        return False
    here = table.rows[len(before)].target
    there = last.target
    if not isinstance(here, Linear) or not isinstance(there, Linear):
        return False
    longer = here.length > there.length and len(table) == len(old)
    same = here.device == there.device and here.offset == there.offset
    return same and (longer or here.length == there.length)
