"""The single changes that a begin is made of; each asks the kernel before it undoes.

Kernel facts: drivers/md/dm-snap.c, drivers/md/dm-snap-persistent.c, drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypedDict

from dmcopy.core.table import Table
from dmcopy.errors import DmBusy, DmcopyError
from dmcopy.kernel.blkdev import BlockDevice, syncfs
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.loop import LoopDevice
from dmcopy.kernel.lvm import Lvm, create_argv
from dmcopy.kernel.patience import again
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import CowLv
from dmcopy.stack.hold import Swap
from dmcopy.stack.names import TAG, lv_tag
from dmcopy.stack.plan import Step
from dmcopy.units import Bytes, Sectors, to_bytes

_BUSY_SECONDS: Final = 10.0


def remove_device(dm: Dm, name: str, uuid: str) -> None:
    """Remove *name* if it is there and has our *uuid*; waits a while for others to close it.

    udev and blkid may have a new device open for a moment, and a killed worker's
    descriptors close only when its last I/O has ended.  Raises `DmBusy` after 10 s.
    """

    def remove() -> None:
        if (info := dm.info(name)) is not None and info.uuid == uuid:
            dm.remove(name)

    again(remove, on=DmBusy, seconds=_BUSY_SECONDS)


def with_table(argv: Sequence[str], table: Table) -> str:
    """Give a dmsetup line that can be pasted; ``--table`` takes one line only (dmsetup(8))."""
    if len(table) == 1:
        return shlex.join([*argv, "--table", str(table)])
    return f"{shlex.join(argv)} <<'END'\n{table}\nEND"


class CreateDevice(Step):
    """Create one dm device of ours with a table that may depend on earlier steps."""

    def __init__(self, dm: Dm, name: str, uuid: str, table: Callable[[], Table]) -> None:
        self._dm = dm
        self.name = name
        self.uuid = uuid
        self._table = table

    def __str__(self) -> str:
        return f"create {self.name}"

    def lines(self) -> Sequence[str]:
        argv = ["dmsetup", "create", self.name, "--uuid", self.uuid]
        return (with_table(argv, self._table()),)

    def do(self) -> None:
        self._dm.create(self.name, self.uuid, self._table())

    def undo(self) -> None:
        remove_device(self._dm, self.name, self.uuid)

    def devno(self) -> str:
        """Give "major:minor" of the device once it exists, else its path for a dry run."""
        info = self._dm.info(self.name)
        if info is not None and info.uuid == self.uuid:
            return info.devno
        return f"/dev/mapper/{self.name}"


class _Extents(TypedDict):
    extents: int
    tags: Sequence[str]


class CowFile(Step):
    """A preallocated file: writes to it can never meet a full file system."""

    def __init__(self, path: Path, size: Bytes) -> None:
        self.path = path
        self._size = size
        self._somebody_elses = False

    def __str__(self) -> str:
        return f"allocate COW file {self.path}"

    def lines(self) -> Sequence[str]:
        return (f"fallocate --length {self._size} {shlex.quote(str(self.path))}",)

    def do(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, flags, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size)
            finally:
                os.close(fd)
        except OSError as exc:
            self._somebody_elses = isinstance(exc, FileExistsError)
            raise DmcopyError(
                f"cannot allocate {self._size} bytes for COW file {self.path}: {exc.strerror}"
            ) from exc

    def undo(self) -> None:
        if not self._somebody_elses:
            self.path.unlink(missing_ok=True)


class AttachLoop(Step):
    """A loop device over the COW file, which goes by itself when nobody has it open."""

    def __init__(self, path: Path, sysfs: Sysfs) -> None:
        self._path = path
        self._sysfs = sysfs
        self._loop: LoopDevice | None = None

    def __str__(self) -> str:
        return f"attach a loop device to {self._path}"

    def lines(self) -> Sequence[str]:
        return (f"losetup --find --show --direct-io=on {shlex.quote(str(self._path))}",)

    def do(self) -> None:
        self._loop = LoopDevice.attach(str(self._path))

    def undo(self) -> None:
        if self._loop is not None:
            self._loop.detach()
            self._loop = None

    def devno(self) -> str:
        """Give "major:minor" of the loop device, a placeholder for a dry run."""
        return self._loop.devno if self._loop is not None else "/dev/loopN"


class CreateLv(Step):
    """A logical volume of ours, which carries our tags."""

    def __init__(self, cow: CowLv, job: str, lvm: Lvm) -> None:
        self._cow = cow
        self._job = job
        self._lvm = lvm
        self._devno: str | None = None
        self._somebody_elses = False

    def __str__(self) -> str:
        return f"create {self._cow}"

    def lines(self) -> Sequence[str]:
        return (shlex.join(create_argv(self._cow.vg, self._cow.name, **self._how())),)

    def do(self) -> None:
        cow = self._cow
        if self._lvm.lv(cow.vg, cow.name) is not None:
            self._somebody_elses = True
            raise DmcopyError(
                f"{cow} is there already; if it is of a job that died: dmcopy rescue {self._job}"
            )
        self._lvm.create(cow.vg, cow.name, **self._how())
        made = self._lvm.lv(cow.vg, cow.name)
        if made is None or made.devno is None:
            raise DmcopyError(f"{cow} was made, but is not active")
        self._devno = made.devno

    def undo(self) -> None:
        if not self._somebody_elses:
            self._lvm.remove(self._cow.vg, self._cow.name, tag=lv_tag(self._job))

    def devno(self) -> str:
        """Give "major:minor" of the LV once it exists, else its path for a dry run."""
        return self._devno or f"/dev/{self._cow.vg}/{self._cow.name}"

    def _how(self) -> _Extents:
        return {"extents": self._cow.extents(self._cow.size), "tags": (TAG, lv_tag(self._job))}


class WipeHead(Step):
    """Zero and sync the first chunks of the COW device: a stale store must not come alive.

    The kernel takes a device with our magic in chunk 0 for an existing exception store
    (dm-snap-persistent.c:read_header), and writes a new header and area 0 without a flush.
    """

    def __init__(self, path: Callable[[], str], length: Bytes) -> None:
        self._path = path
        self._length = length

    def __str__(self) -> str:
        return "wipe the head of the COW device"

    def lines(self) -> Sequence[str]:
        return (
            f"dd if=/dev/zero of={self._path()} bs={self._length} count=1 "
            "oflag=direct conv=fsync,notrunc",
        )

    def do(self) -> None:
        with BlockDevice.open(self._path(), write=True) as device:
            device.zero(Bytes(0), self._length)
            device.flush()

    def undo(self) -> None:
        """Nothing: there was nothing of worth, or we would not have been let in."""


class Flush(Step):
    """Make durable what was written before the begin time, before anybody counts on it.

    What the source's disk has in its volatile cache is part of the image, and nobody but us
    asks for it: a chunk that is overwritten later is saved with FUA, all others are not.  The
    header of the exception store is durable with the first chunk that is saved, and without it
    nothing can be resumed.
    Proof: test_what_was_written_before_begin_time_is_durable_when_the_job_has_begun, and
    test_store_is_durable_when_the_job_has_begun.
    """

    def __init__(self, what: str, path: Callable[[], str]) -> None:
        self._what = what
        self._path = path

    def __str__(self) -> str:
        return f"flush the {self._what}"

    def lines(self) -> Sequence[str]:
        return (f"sync {self._path()}",)

    def do(self) -> None:
        with BlockDevice.open(self._path()) as device:
            device.flush()

    def undo(self) -> None:
        """Nothing to undo."""


class SyncFileSystems(Step):
    """Flush dirty data now, so that the freeze in the critical part is short."""

    def __init__(self, mounts: Sequence[str]) -> None:
        self._mounts = tuple(mounts)

    def __str__(self) -> str:
        return f"sync {' '.join(self._mounts)}"

    def lines(self) -> Sequence[str]:
        return (shlex.join(["sync", "--file-system", *self._mounts]),)

    def do(self) -> None:
        for mount in self._mounts:
            syncfs(mount)

    def undo(self) -> None:
        """Nothing to undo."""


def restore_origin(
    dm: Dm, name: str, original: Table, is_ours: Callable[[Table], bool], *, limit: float
) -> float | None:
    """Give the origin its *original* table back if one of ours is live; seconds of the hold.

    Gives None when none is: then one of ours is dropped from the inactive slot, and a suspended
    device is resumed.  Nothing is frozen for it: nothing needs a clean file system now, and a
    freeze could wait.  *limit* is the longest hold in seconds.  Raises what `Swap` raises, and
    `DmcopyError` when the table afterwards is not the original.  What the brake holds must have
    been let go before (`layers`).
    """
    if not is_ours(dm.table(name)):
        info = dm.info(name)
        if info is not None and info.inactive and is_ours(dm.table(name, inactive=True)):
            dm.clear(name)
        if info is not None and info.suspended:
            dm.resume(name, lockfs=False)
        return None
    held = Swap.necessary(dm, name, limit)(original).held
    now = dm.table(name)
    if now != original:
        raise DmcopyError(f"the table of {name} is not what it was: '{now}', was '{original}'")
    return held


def node_path(sysfs: Sysfs, device: CreateDevice) -> Callable[[], str]:
    """Give a function that names the /dev path of *device* once it exists."""

    def path() -> str:
        devno = device.devno()
        return devno if devno.startswith("/") else sysfs.node(devno)

    return path


def head_length(chunk: Sectors) -> Bytes:
    """Give how much of a COW device is wiped: the header's chunk and the first area."""
    return to_bytes(Sectors(2 * chunk))
