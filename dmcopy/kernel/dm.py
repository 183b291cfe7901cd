"""What we ask of device-mapper: one protocol, two backends (`dmioctl`, `dmsetup`).

Names are dm names, not paths.  Every method may raise `DmFailed`; `DmMissing` where there
is no such device and `DmBusy` for EBUSY.  Devices whose uuid starts with ``DMCOPY-`` are
ours: both backends create, resume and remove them with the udev flags that keep them out of
/dev/disk/by-* and of LVM and blkid scans, and wait for udev where it runs.  Any other device
is resumed without a cookie, so that udev keeps the flags its owner gave it
(rules.d/55-dm.rules: without DM_UDEV_PRIMARY_SOURCE_FLAG the old flags are imported); dmsetup
cannot do that, see there.  A device wrap (uuid ``DMCOPYWRAP-``) is for everybody to see: it is
made and removed as libdm would, with the flag that says so, and udev is waited for.  What never
logs, forks or touches a file, and so may be called while I/O is held, is in `dmioctl` only.

Kernel: include/uapi/linux/dm-ioctl.h, drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from dmcopy.core.table import Table

OURS: Final = "DMCOPY-"
WRAPS: Final = "DMCOPYWRAP-"


class DmInfo(NamedTuple):
    """What the kernel says of one device (struct dm_ioctl)."""

    name: str
    uuid: str
    devno: str  # "major:minor"
    open_count: int
    event_nr: int
    target_count: int
    live: bool  # has a live table
    inactive: bool  # has a loaded table in the inactive slot
    suspended: bool
    read_only: bool


class DmStatus(NamedTuple):
    """One line of a status: a target of the live table and what it says."""

    start: int  # sectors
    length: int  # sectors
    kind: str
    text: str


class Dm(Protocol):
    """The device-mapper control interface."""

    def version(self) -> tuple[int, int, int]:
        """Give the version of the driver's ioctl interface."""

    def targets(self) -> dict[str, tuple[int, int, int]]:
        """Give the target kinds that the kernel has loaded, with their versions."""

    def devices(self) -> list[DmInfo]:
        """List all devices."""

    def info(self, name: str) -> DmInfo | None:
        """Give what the kernel knows of *name*, None when there is no such device."""

    def find(self, uuid: str) -> DmInfo | None:
        """Give the device with this exact *uuid*, None when there is none."""

    def create(
        self, name: str, uuid: str, table: Table | None = None, *, read_only: bool = False
    ) -> DmInfo:
        """Create a device; with a *table* also load it and resume (live on return).

        When it raises, there is no such device (a half made one is removed).
        """

    def load(self, name: str, table: Table, *, read_only: bool = False) -> None:
        """Load *table* into the inactive slot; the live table goes on."""

    def clear(self, name: str) -> None:
        """Drop the table in the inactive slot; nothing happens when there is none."""

    def suspend(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        """Hold all I/O; `resume` must follow."""

    def resume(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        """Swap a loaded table in (suspending by itself if need be) and let I/O go on.

        One ioctl: no user code runs while I/O is held.  *lockfs* freezes a file system
        that is mounted directly on the device, *flush* False lets targets requeue.
        """

    def prepare_suspend(
        self, name: str, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], object]:
        """Make a `suspend` ready, so that calling it does nothing else."""

    def prepare_clear(self, name: str) -> Callable[[], object]:
        """Make a `clear` ready, so that calling it does nothing else."""

    def prepare_resume(
        self, name: str, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], object]:
        """Make a `resume` ready, so that calling it does nothing else; waits for no udev.

        Raises `DmMissing` now when there is no such device.
        """

    def prepare_exchange(
        self, name: str, over: Table, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], bool]:
        """Make ready: swap the loaded table in, but only if *over* is what is live.

        Calling it holds the I/O, looks, and lets the I/O go on; where another table is live by
        then, the loaded one is dropped and False given.  Nothing can come between the look and
        the swap but a resume of somebody else's, so look at the table afterwards too.
        Raises `DmMissing` now when there is no such device.
        """

    def remove(self, name: str, *, deferred: bool = False) -> None:
        """Remove the device; `DmBusy` while it is open, unless *deferred*."""

    def rename(self, name: str, new: str) -> None:
        """Give the device a new name; its uuid stays."""

    def table(self, name: str, *, inactive: bool = False) -> Table:
        """Give the live (or the *inactive*) table; empty when there is none."""

    def status(self, name: str, *, flush: bool = True) -> list[DmStatus]:
        """Ask the targets of the live table; *flush* False never waits for I/O."""

    def deps(self, name: str) -> list[str]:
        """List the devices ("major:minor") that the live table uses."""

    def message(self, name: str, sector: int, text: str) -> str:
        """Send *text* to the target at *sector*; give its answer, often empty."""

    def wait(self, name: str, event_nr: int, *, timeout: float) -> int | None:
        """Wait until the device's event number differs from *event_nr*.

        Gives the new number, or None when *timeout* seconds went by.
        """


@contextmanager
def suspended(dm: Dm, name: str, *, lockfs: bool = True) -> Iterator[None]:
    """Hold all I/O to *name*; always resume, also after an error."""
    # outside the try: a failed suspend must not resume, for resume would swap in a loaded table
    dm.suspend(name, lockfs=lockfs)
    try:
        yield
    finally:
        dm.resume(name)
