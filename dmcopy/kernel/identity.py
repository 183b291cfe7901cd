"""Whether a device is the one that it was: by what names it for ever, as far as that is known."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from dmcopy.kernel.sysfs import Sysfs

Identity = Mapping[str, str | int]  # Sysfs.identity

# of these, one that both know settles it
_STRONG: Final = ("wwn", "serial", "partuuid", "dm_uuid", "md_uuid", "backing_file")


def difference(old: Identity, new: Identity) -> str | None:
    """Name what tells *new* from *old*, which was recorded; None when it is the same device."""
    strong = [key for key in _STRONG if key in old]
    both = [key for key in strong if key in new]
    if strong and not both and not (strong == ["partuuid"] and "partition" in new):
        return strong[0]  # it had a name for ever, and this one has another kind or none
    # Kernels before 6.5 do not tell PARTUUID: who may start a program compares what blkid tells
    # (`destinations.block`), and who may not, the number that the device has in this boot.
    # dm numbers its devices in the order in which they are made: in another boot, another one
    weak = "dm_name" if "dm_name" in old else "devno"
    # the partitions of a disk share its wwn and serial; a partuuid is one's own
    part = ["partition"] if "partuuid" not in both else []
    for key in (*(both or [weak]), "size_bytes", *part):
        if key in old and old[key] != new.get(key):
            return key
    return None


def find(old: Identity, sysfs: Sysfs) -> str | None:
    """Give the devno of the device that was recorded as *old*; None when it is not there.

    The device that has its number now is asked first: where nothing strong is known, it is
    the only one that can be it.
    """
    for devno in _devices(str(old["devno"]), sysfs):
        try:
            if difference(old, sysfs.identity(devno)) is None:
                return devno
        except OSError:  # it has just gone
            continue
    return None


def _devices(first: str, sysfs: Sysfs) -> Iterator[str]:
    there = sorted(os.listdir(sysfs.root / "dev" / "block"))
    if first in there:
        yield first
    yield from there
