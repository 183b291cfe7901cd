"""A snapshot that LVM made for a job, as the kernel shows it.

LVM lays it out like this (lib/activate/dev_manager.c); all uuids begin with ``LVM-``::

    VG-LV          snapshot-origin          the origin: what the application has open
    VG-LV-real     the LV's own table       what we read
    VG-SNAP        snapshot                 the kernel's own view of the image
    VG-SNAP-cow    linear                   the exception store

`Layers` and `recover` find these where a job has no devices of ours in their place.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from dmcopy.core.targets.snapshot import Snapshot
from dmcopy.errors import DmFailed
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.stack.names import Role, lv_owner


@dataclass(frozen=True, kw_only=True)
class SnapshotVolume:
    """The dm devices of one LVM snapshot."""

    snapshot: DmInfo
    source: DmInfo
    cow: DmInfo

    def info(self, role: Role) -> DmInfo | None:
        """Give the device that has this role, None where LVM has none for it."""
        return self.by_role().get(role)

    def by_role(self) -> dict[Role, DmInfo]:
        """Give the devices by what they are for."""
        return {Role.SNAP: self.snapshot, Role.SOURCE: self.source, Role.COW: self.cow}


def snapshot_volumes(dm: Dm, devices: list[DmInfo]) -> dict[str, SnapshotVolume]:
    """Give the snapshots among *devices* that are named as jobs' are, by job."""
    found: dict[str, SnapshotVolume] = {}
    for info in devices:
        job = lv_owner(info.name, info.uuid)
        if job is None:
            continue
        volume = _volume(dm, info, devices)
        if volume is not None:
            found[job] = volume
    return found


def snapshot_volume(dm: Dm, job: str) -> SnapshotVolume | None:
    """Give the snapshot that LVM made for *job*, None when there is none."""
    return snapshot_volumes(dm, dm.devices()).get(job)


def _volume(dm: Dm, info: DmInfo, devices: list[DmInfo]) -> SnapshotVolume | None:
    by_devno = {one.devno: one for one in devices}
    # the live table, or what is loaded while the begin time is being fixed (`lvm_begin`)
    for inactive in (False, True):
        with suppress(DmFailed):  # it may have gone meanwhile
            for row in dm.table(info.name, inactive=inactive).rows:
                target = row.target
                if isinstance(target, Snapshot):
                    source, cow = by_devno.get(target.origin), by_devno.get(target.cow)
                    if source is not None and cow is not None:
                        return SnapshotVolume(snapshot=info, source=source, cow=cow)
    return None
