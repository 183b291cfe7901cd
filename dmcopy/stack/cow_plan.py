"""How large the COW device is in the beginning, how large it may become, and where it goes.

``auto`` may become as large as could ever be needed where there is room, and begins with a
part of that.  Not too small a part: the kernel sizes its table of exceptions in memory by the
COW device as it is when the snapshot is made (dm-snap.c:init_hash_tables), so that a tiny one
that has grown a hundred times has long hash chains, and every write of the origin walks them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.core.geometry import never_overflow
from dmcopy.errors import CommandFailed, Refused, UsageError
from dmcopy.kernel.lvm import Lvm, Volume
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import (
    CowDevice,
    CowDevices,
    CowFileOnHost,
    CowLv,
    CowPlan,
    CowSnapshot,
    CowSpec,
    cow_file_name,
)
from dmcopy.stack.names import lv_name
from dmcopy.units import (
    KIB,
    MIB,
    Bytes,
    Sectors,
    format_size,
    round_down,
    round_up,
    sectors_down,
    to_bytes,
    to_sectors,
)

_MORE_ROOM: Final = "give a place with more room: --cow FILE:SIZE or --cow DEVICE"
_FREE_SHARE: Final = 2  # auto takes at most one half of what is free
_SMALLEST: Final = Bytes(1 * MIB)
_WHOLE: Final = Bytes(256 * MIB)  # up to here auto takes at once all that could be needed
_LEAST_START: Final = Bytes(64 * MIB)
_LARGEST_LVM_CHUNK: Final = Bytes(512 * KIB)  # lvcreate(8), --chunksize
_START_SHARE: Final = 8  # else auto begins with one eighth of it


class _Sizes(NamedTuple):
    size: Bytes
    most: Bytes
    why: str


def plan_cow(
    spec: CowSpec,
    *,
    job: str,
    source: str,
    length: Sectors,
    chunk: Sectors,
    directory: Path,
    sysfs: Sysfs,
    lvm: Lvm,
    volume: Volume | None = None,
    may_grow: bool = True,
) -> CowPlan:
    """Decide what the COW device is; changes nothing.

    *source* is the origin's devno, *length* its sectors, *directory* where COW files go that
    the user did not place.  A *volume* is an LV that LVM shall make a snapshot of; where it may
    not grow, it begins as large as it could become.  What is on a user's device is the caller's to
    check.  Raises `Refused` and `UsageError`.
    """
    planner = _Planner(
        spec=spec,
        job=job,
        source=source,
        length=length,
        chunk=chunk,
        directory=directory,
        sysfs=sysfs,
        lvm=lvm,
    )
    return planner.plan() if volume is None else planner.snapshot(volume, may_grow=may_grow)


@dataclass(frozen=True, kw_only=True)
class _Planner:
    spec: CowSpec
    job: str
    source: str
    length: Sectors
    chunk: Sectors
    directory: Path
    sysfs: Sysfs
    lvm: Lvm

    def plan(self) -> CowPlan:
        spec = self.spec
        self._check_most()
        if spec.devices:
            return self._devices()
        return self._volume(spec.vg) if spec.vg is not None else self._file()

    def snapshot(self, volume: Volume, *, may_grow: bool) -> CowSnapshot:
        """Decide how large the COW device is that LVM makes, in the group of *volume*."""
        spec = self.spec
        self._check_most()
        if spec.devices or spec.file or spec.vg not in (None, volume.vg):
            raise UsageError(
                f"--cow {spec} cannot be for a logical volume: its snapshot lies in its own volume "
                f"group, {volume.vg}; give a size (--cow 20g), or leave it away"
            )
        if to_bytes(self.chunk) > _LARGEST_LVM_CHUNK:
            raise UsageError(
                f"LVM takes chunks of at most {format_size(_LARGEST_LVM_CHUNK)}, not "
                f"{format_size(to_bytes(self.chunk))}"
            )
        vg = self.lvm.vg(volume.vg)
        unit = Sectors(math.lcm(self.chunk, to_sectors(vg.extent)))
        more = f"add a device to the group: vgextend {vg.name} DEVICE"
        sizes = self._sizes(vg.free, f"in volume group {vg.name}", unit=unit, more_room=more)
        if not may_grow:
            sizes = sizes._replace(size=sizes.most)
        return CowSnapshot(
            vg=vg.name,
            name=lv_name(self.job),
            chunk=self.chunk,
            extent=vg.extent,
            **sizes._asdict(),
        )

    def _check_most(self) -> None:
        spec = self.spec
        if spec.most is not None and spec.size is not None and spec.most < spec.size:
            raise UsageError(
                f"--cow-max {format_size(spec.most)} is less than the "
                f"{format_size(spec.size)} that --cow begins with"
            )

    def _devices(self) -> CowDevices:
        if self.spec.most is not None:
            raise UsageError(
                "--cow-max is for a COW file or LV: of devices all is used that they have"
            )
        devices = []
        for path in self.spec.devices:
            try:
                devno = self.sysfs.devno_of(path)
                size = sectors_down(self.sysfs.size(devno))
            except OSError as exc:
                raise UsageError(f"COW device {path}: {exc.strerror}") from exc
            devices.append(CowDevice(path, devno, round_down(size, self.chunk)))
            if not devices[-1].length:
                raise Refused(f"COW device {path} is smaller than one chunk")
        return CowDevices(tuple(devices))

    def _file(self) -> CowFileOnHost:
        spec = self.spec
        name = spec.file or self.directory / cow_file_name(self.job)
        path = Path(os.path.abspath(name))
        if spec.file and os.path.lexists(path):
            raise Refused(f"COW file {path} exists", way_out="name one that does not, or remove it")
        sizes = self._sizes(self._free(path), f"in {path.parent}", unit=self.chunk)
        return CowFileOnHost(path=path, chunk=self.chunk, **sizes._asdict())

    def _volume(self, name: str) -> CowLv:
        try:
            vg = self.lvm.vg(name)
        except CommandFailed as exc:
            raise UsageError(f"--cow vg:{name}: {exc}") from exc
        for path in vg.devices:
            try:
                devno = self.sysfs.devno_of(path)
            except OSError as exc:
                raise Refused(f"volume group {name} lacks {path}: {exc.strerror}") from exc
            if self.source in self.sysfs.below(devno) | {devno}:
                raise Refused(
                    f"volume group {name} lies on the device that is being copied",
                    way_out="give another place: --cow FILE:SIZE or --cow DEVICE",
                )
        unit = Sectors(math.lcm(self.chunk, to_sectors(vg.extent)))
        sizes = self._sizes(vg.free, f"in volume group {name}", unit=unit)
        return CowLv(
            vg=name,
            name=lv_name(self.job),
            chunk=self.chunk,
            extent=vg.extent,
            **sizes._asdict(),
        )

    def _sizes(
        self, free: Bytes, where: str, *, unit: Sectors, more_room: str = _MORE_ROOM
    ) -> _Sizes:
        """Decide; *free* is what is free *where*, sizes are multiples of *unit*."""
        whole = round_up(never_overflow(self.length, self.chunk), unit)
        if self.spec.size is None:
            sizes = self._auto(free, where, to_bytes(whole))
        else:
            size = to_bytes(round_up(_sectors_up(self.spec.size), unit))
            sizes = self._asked(size, to_bytes(whole))
        size = to_bytes(round_down(sectors_down(sizes.size), unit))
        most = to_bytes(round_down(sectors_down(sizes.most), unit))
        least = max(_SMALLEST, to_bytes(Sectors(8 * self.chunk)))
        if size < least:
            if self.spec.size is None and free // _FREE_SHARE < least:
                raise Refused(
                    f"no room for a COW device {where}: {format_size(free)} are free",
                    way_out=more_room,
                )
            raise Refused(
                f"{format_size(size)} is too small for a COW device {where}", way_out=more_room
            )
        if size > free:
            raise Refused(
                f"no room for a COW device of {format_size(size)} {where}: "
                f"{format_size(free)} are free",
                way_out=f"give a smaller --cow SIZE, or {more_room}",
            )
        return _Sizes(size, max(size, most), sizes.why)

    def _auto(self, free: Bytes, where: str, whole: Bytes) -> _Sizes:
        half = Bytes(free // _FREE_SHARE)
        limits = {
            f"half of what is free {where}": half,
            "--cow-max": self.spec.most if self.spec.most is not None else whole,
            "all that could be needed": whole,
        }
        most = min(limits.values())
        why = [word for word, limit in limits.items() if limit == most][-1]
        start = whole if whole <= _WHOLE else max(_LEAST_START, whole // _START_SHARE)
        return _Sizes(min(Bytes(start), most), most, why)

    def _asked(self, size: Bytes, useful: Bytes) -> _Sizes:
        """Begin with the user's *size*; it grows only when he says how far."""
        most = self.spec.most
        if most is None or most <= size:
            return _Sizes(size, size, "as asked for")
        if useful <= most:
            return _Sizes(size, max(size, useful), "all that could be needed")
        return _Sizes(size, most, "--cow-max")

    def _free(self, path: Path) -> Bytes:
        """Give the free bytes where *path* shall be; `Refused` if that lies above the source.

        A COW file on the very device that is being copied would save its own growth into
        itself, and a held write could wait for ever.
        """
        parent = path.parent
        while not parent.exists():
            parent = parent.parent
        under = self.sysfs.devices_of(str(parent))
        if self.source in under.union(*(self.sysfs.below(devno) for devno in under)):
            raise Refused(
                f"the COW file {path} would lie on the device that is being copied",
                way_out="give another place: --cow FILE:SIZE or --cow DEVICE",
            )
        stat = os.statvfs(parent)
        return Bytes(stat.f_bavail * stat.f_frsize)


def _sectors_up(size: Bytes) -> Sectors:
    return Sectors(-(-size // to_bytes(Sectors(1))))
