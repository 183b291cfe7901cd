"""What the COW device is made of: a block device, or a preallocated file.

The COW device takes the old content of every chunk that is written during the copy.  When
it is full the kernel drops the point in time (dm-snap.c:invalidate_snapshot), never a write.
So ``auto`` makes it as large as could ever be needed where there is room.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.core.geometry import never_overflow
from dmcopy.errors import Refused, UsageError
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import (
    MIB,
    Bytes,
    Sectors,
    format_size,
    parse_size,
    round_down,
    sectors_down,
    to_bytes,
)

_FREE_SHARE: Final = 2  # auto takes at most one half of what is free
_SMALLEST: Final = Bytes(1 * MIB)


@dataclass(frozen=True)
class CowSpec:
    """What the user asked for: exactly one of a *device*, a *file* (with *size*), a *size*
    alone, or nothing at all (auto)."""

    device: str | None = None
    file: str | None = None
    size: Bytes | None = None

    @classmethod
    def parse(cls, text: str) -> CowSpec:
        """Read ``auto``, ``DEVICE``, ``SIZE`` or ``FILE:SIZE``; raises `UsageError`."""
        if text == "auto":
            return cls()
        try:
            return cls(size=parse_size(text))
        except ValueError:
            pass
        if text.startswith("/dev/"):  # its name may have a colon, and no file is ever made there
            return cls(device=text)
        file, colon, size = text.rpartition(":")
        if colon and file.startswith(("/", "./", "../")):
            try:
                return cls(file=file, size=parse_size(size))
            except ValueError:
                pass
        raise UsageError(
            f"'{text}' is not a COW device: say auto, a size (20g), a device (/dev/vg0/spare), "
            "or a file and its size (/var/tmp/cow:20g)"
        )

    def __str__(self) -> str:
        if self.device:
            return self.device
        if self.file:
            return f"{self.file}:{self.size}"
        return "auto" if self.size is None else str(self.size)


@dataclass(frozen=True)
class CowDevice:
    """A block device of the user's."""

    path: str
    devno: str
    length: Sectors

    def __str__(self) -> str:
        return f"device {self.path}"


@dataclass(frozen=True)
class CowFileOnHost:
    """A file that does not exist yet, behind a loop device."""

    path: Path
    size: Bytes

    @property
    def length(self) -> Sectors:
        """The size in sectors."""
        return sectors_down(self.size)

    def __str__(self) -> str:
        return f"file {self.path}"


CowPlan = CowDevice | CowFileOnHost


def cow_file_name(job: str) -> str:
    """Give the name of a job's COW file in the state directory."""
    return f"dmcopy-{job}.cow"


def plan_cow(
    spec: CowSpec,
    *,
    job: str,
    source: str,
    length: Sectors,
    chunk: Sectors,
    directory: Path,
    sysfs: Sysfs,
) -> CowPlan:
    """Decide what the COW device is; changes nothing.

    *source* is the origin's devno, *length* its sectors, *directory* where COW files go that
    the user did not place.  A device's content is the caller's to check.  Raises `Refused`
    and `UsageError`.
    """
    if spec.device is not None:
        return _device(spec.device, sysfs, source)
    path = Path(os.path.abspath(spec.file)) if spec.file else directory / cow_file_name(job)
    if spec.file and os.path.lexists(path):
        raise Refused(f"COW file {path} exists", way_out="name one that does not, or remove it")
    free = _free(path, source, sysfs)
    enough = to_bytes(never_overflow(length, chunk))
    size = spec.size if spec.size is not None else min(enough, Bytes(free // _FREE_SHARE))
    size = to_bytes(round_down(sectors_down(size), chunk))
    if size < max(_SMALLEST, to_bytes(Sectors(8 * chunk))):
        raise Refused(
            f"{format_size(size)} is too small for a COW device in {path.parent}",
            way_out="give a place with more room: --cow FILE:SIZE or --cow DEVICE",
        )
    if size > free:
        raise Refused(
            f"no room for a COW file of {format_size(size)} in {path.parent}: "
            f"{format_size(free)} are free",
            way_out="give a smaller --cow SIZE, or another place: --cow FILE:SIZE",
        )
    return CowFileOnHost(path, size)


def _device(path: str, sysfs: Sysfs, source: str) -> CowDevice:
    try:
        devno = sysfs.devno_of(path)
    except OSError as exc:
        raise UsageError(f"COW device {path}: {exc.strerror}") from exc
    return CowDevice(path, devno, sectors_down(sysfs.size(devno)))


def _free(path: Path, source: str, sysfs: Sysfs) -> Bytes:
    """Give the free bytes where *path* shall be; `Refused` if that lies above the source.

    A COW file on the very device that is being copied would save its own growth into
    itself, and a held write could wait for ever.
    """
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    under = sysfs.devices_of(str(parent))
    if source in under.union(*(sysfs.below(devno) for devno in under)):
        raise Refused(
            f"the COW file {path} would lie on the device that is being copied",
            way_out="give another place: --cow FILE:SIZE or --cow DEVICE",
        )
    stat = os.statvfs(parent)
    return Bytes(stat.f_bavail * stat.f_frsize)
