"""Where the full stripes of an md array lie on a device that is made of it.

A segment that begins and ends with a stripe is read with one request to each member, and the
destination, if it is such an array too, writes it without reading anything.  Nothing depends on
it but speed: where it cannot be had, segments are as they would be without an array.

Not for: arrays of the destination, or devices that say of themselves what is best to be read.
"""

from __future__ import annotations

from dmcopy.core.targets.linear import Linear
from dmcopy.errors import DmFailed
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.md import Md
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Bytes, Sectors, to_bytes


def full_stripe(devno: str, dm: Dm | None, sysfs: Sysfs) -> Bytes:
    """Give the full stripe that begins at sector 0 of *devno* and at every multiple; else 0.

    0 as well where the device lies on an array, but not at a stripe's beginning (an LV, a
    partition): then no size of segments makes them begin where stripes do.
    """
    md = Md(sysfs)
    if md.is_array(devno):
        return md.read(devno).stripe
    disk = sysfs.parent(devno)
    if disk is not None:
        return _if_at(sysfs.start(devno), full_stripe(disk, dm, sysfs))
    name = sysfs.dm_name(devno)
    if dm is None or not name:
        return Bytes(0)
    try:
        rows = dm.table(name).rows
    except DmFailed:  # it goes right now
        return Bytes(0)
    stripes = {_of_row(row.start, row.target, dm, sysfs) for row in rows}
    return stripes.pop() if len(stripes) == 1 else Bytes(0)


def _of_row(start: Sectors, target: object, dm: Dm, sysfs: Sysfs) -> Bytes:
    if not isinstance(target, Linear):
        return Bytes(0)
    return _if_at(target.offset - start, full_stripe(target.device, dm, sysfs))


def _if_at(shift: int, stripe: Bytes) -> Bytes:
    """Give *stripe* if a device that is shifted by so many sectors keeps its boundaries."""
    return stripe if stripe and to_bytes(Sectors(shift)) % stripe == 0 else Bytes(0)
