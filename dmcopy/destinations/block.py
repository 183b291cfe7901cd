"""``block:PATH``: a whole block device, held by O_EXCL for as long as the session lasts.

O_EXCL alone does not save a disk: it is granted on a PV without active LVs, under a loop
device, and while a program has the device open without O_EXCL (KERNEL.md section 10).  So
every use that can be found is looked for (`refusal`), before the device is opened and again
while it is held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from dmcopy.core.extent import Extent
from dmcopy.destinations.base import Can, Destination, Session, Surroundings, must_fit
from dmcopy.destinations.refusal import (
    refuse_other,
    refuse_other_partition,
    refuse_signature,
    refuse_unfit,
    refuse_use,
    refusing,
)
from dmcopy.errors import DestinationFailed, UsageError
from dmcopy.kernel.blkdev import BlockDevice, pread_full, pwrite_full
from dmcopy.kernel.signature import table_ids
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Sectors


@dataclass(frozen=True)
class BlockDestination(Destination):
    """A block device, named by an absolute *path*."""

    kind: ClassVar[str] = "block"
    can: ClassVar[Can] = Can.RANDOM | Can.ZERO | Can.REREAD

    path: str

    @classmethod
    def parse(cls, rest: str) -> BlockDestination:
        """Take a path; it is made absolute, for the worker may stand elsewhere."""
        if not rest:
            raise UsageError("block: needs the path of a device, as in block:/dev/sdb")
        return cls(os.path.abspath(rest))

    def __str__(self) -> str:
        """Give ``block:PATH``."""
        return f"{self.kind}:{self.path}"

    def check(self, length: Sectors, around: Surroundings) -> None:
        """Refuse a device that is in use, unfit, or carries a signature."""
        devno = self._devno(around.sysfs)
        refuse_use(self.path, devno, around)
        refuse_unfit(self.path, devno, length, around)
        # O_RDONLY: closing a device that was open for writing makes udev probe it again
        with _claimed(self.path, around.sysfs, write=False):
            pass
        if around.identity is not None and "partuuid" in around.identity:
            refuse_other_partition(self.path, around)
        if not around.overwrite_signature:
            refuse_signature(self.path, around)

    def identity(self, around: Surroundings) -> Mapping[str, str | int]:
        """Give path, devno, size and whatever names the device for ever."""
        known = around.sysfs.identity(self._devno(around.sysfs))
        return {"path": self.path, **table_ids(around.run, self.path), **known}

    @contextmanager
    def open(self, length: Sectors, around: Surroundings) -> Iterator[Session]:
        """Claim the device, look at everything again, and hold it."""
        with _claimed(self.path, around.sysfs, write=True) as device:
            # By the number of what is open, not by path: the path may have changed its
            # meaning since `check`, and from here on nobody else can claim the device.
            refuse_use(self.path, device.devno, around)
            refuse_unfit(self.path, device.devno, length, around)
            refuse_other(self.path, device.devno, around)
            yield BlockSession(device, length)

    def leftovers(self) -> list[str]:
        """Nothing: what was written to a device stays there."""
        return []

    def _devno(self, sysfs: Sysfs) -> str:
        with refusing(self.path):
            return sysfs.devno_of(self.path)


class BlockSession(Session):
    """Direct writes to a device that is held; it owns nothing."""

    def __init__(self, device: BlockDevice, length: Sectors) -> None:
        """Write to *device*, up to *length*."""
        self._device = device
        self._whole = Extent(Sectors(0), length)

    @property
    def mark(self) -> Mapping[str, str | int]:
        """Nothing: a device is told by its identity, which is checked at each open."""
        return {}

    def keep(self) -> None:
        """Nothing: what was written to a device stays there."""

    def write(self, at: Extent, data: memoryview) -> None:
        """Write past the page cache; durable after `flush`."""
        self._must_fit(at, data)
        with self._failing("write", at):
            pwrite_full(self._device.fd, data, at.offset)

    def zero(self, at: Extent) -> None:
        """Let the device write zeroes itself where it can, else the kernel does."""
        self._must_fit(at, None)
        with self._failing("write zeroes to", at):
            self._device.zero(at.offset, at.size)

    def flush(self) -> None:
        """Empty the device's own write cache."""
        with self._failing("flush", None):
            self._device.flush()

    def read(self, at: Extent, into: memoryview) -> None:
        """Read by O_DIRECT: from the device, not from memory."""
        self._must_fit(at, into)
        with self._failing("read back", at):
            pread_full(self._device.fd, into, at.offset)

    def complete(self) -> None:
        """Nothing is left to do: a device has no name to be given."""

    def _must_fit(self, at: Extent, data: memoryview | None) -> None:
        must_fit(at, self._whole, data)

    @contextmanager
    def _failing(self, verb: str, at: Extent | None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f" at byte {at.offset}" if at is not None else ""
            raise DestinationFailed(
                f"cannot {verb} {self._device.path}{where}: {error.strerror}"
            ) from error


@contextmanager
def _claimed(path: str, sysfs: Sysfs, *, write: bool) -> Iterator[BlockDevice]:
    with refusing(path, sysfs):
        device = BlockDevice.open(path, write=write, exclusive=True, direct=True)
    with device:
        yield device
