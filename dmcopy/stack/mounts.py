"""Which mounted file systems lie on a device, and which of them device-mapper does not freeze.

A suspend with lockfs freezes the file system that is mounted directly on the device
(drivers/md/dm.c:lock_fs).  One that lies on another device above it (LUKS, another dm device, a
loop device, a partition) is frozen by us, the topmost first: a file system in a loop device writes
into the one below when it is frozen itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from dmcopy.kernel.sysfs import Mount, Sysfs

# They have no data of their own: what is frozen is the file system of the upper directory.
_NO_DATA: Final = frozenset({"overlay"})


class Mounts(NamedTuple):
    """Mount points of the file systems on some devices."""

    direct: tuple[str, ...]  # on the devices themselves: suspending freezes them
    above: tuple[str, ...]  # to be frozen, in this order; each file system once
    hidden: tuple[str, ...]  # to be frozen too, but another mount is in front of it


def mounts_over(sysfs: Sysfs, sources: Iterable[str]) -> Mounts:
    """Find what is mounted on *sources*, or on devices above them, by devno."""
    wanted = tuple(dict.fromkeys(sources))
    by_point = _by_point(sysfs.mounts())
    direct = [point for devno in wanted for point in sysfs.mounts_of(devno)]
    over = {one for devno in wanted for one in sysfs.above(devno)} - set(wanted)
    seen = {_file_system(by_point, point) for point in direct}
    above: list[str] = []
    hidden: list[str] = []
    for devno in sorted(over, key=lambda one: (-len(sysfs.below(one)), one)):
        points = sysfs.mounts_of(devno)
        visible = [point for point in points if devno in sysfs.devices_of(point)]
        hidden += points[:1] if not visible else []
        for point in visible:
            found = _file_system(by_point, point)
            if found is not None and found not in seen:
                seen.add(found)
                above.append(point)
    return Mounts(tuple(dict.fromkeys(direct)), tuple(above), tuple(hidden))


def all_points(sysfs: Sysfs, sources: Iterable[str]) -> tuple[str, ...]:
    """Give every mount point of every file system on or above *sources*, bind mounts too."""
    wanted = set(sources)
    devices = wanted | {over for devno in wanted for over in sysfs.above(devno)}
    return tuple(sorted({point for devno in devices for point in sysfs.mounts_of(devno)}))


def _by_point(mounts: Sequence[Mount]) -> dict[str, Mount]:
    return {mount.point: mount for mount in mounts}  # of several at one point, the last hides all


def _file_system(mounts: Mapping[str, Mount], point: str) -> str | None:
    """Give the number of the superblock that is seen at *point*, None for one without data."""
    mount = mounts.get(point)
    return mount.devno if mount is not None and mount.fstype not in _NO_DATA else None


def lies_on(sysfs: Sysfs, path: str, mounts: Sequence[str]) -> str | None:
    """Give that of *mounts* whose file system holds *path* (or what will hold it), or None."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    devices = sysfs.devices_of(path)
    for point in mounts:
        if devices & sysfs.devices_of(point):
            return point
    return None
