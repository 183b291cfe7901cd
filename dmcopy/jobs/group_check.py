"""Whether several volumes can be copied as one group: looks at what they have in common.

What each volume needs by itself, `jobs.prepare` looks at; this is about pairs of them.  Two devices
are as good as one where one lies on the other, or where both are made of the same sectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Final, NamedTuple

from dmcopy.core.extent import Extent
from dmcopy.core.targets.linear import Linear
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.image import ImageDestination
from dmcopy.errors import CommandFailed, DmFailed, Refused, UsageError
from dmcopy.jobs.host import Host
from dmcopy.jobs.prepare import Prepared, spare_devices
from dmcopy.jobs.spec import CopySpec
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.cow import CowFileOnHost, CowLv
from dmcopy.units import Sectors, sectors_down

_OTHER: Final = "name another one"


class _Device(NamedTuple):
    """A block device of one volume."""

    what: str  # source | destination | COW device
    path: str
    devno: str


def check_words(specs: Sequence[CopySpec]) -> None:
    """Raise `UsageError` for options that make no sense for several volumes."""
    if len(specs) == 1:
        raise UsageError(
            "one volume is no group: dmcopy copy SOURCE DESTINATION, or give --pair again"
        )
    cow = specs[0].cow
    if cow.devices or cow.file:
        raise UsageError(
            f"--cow {cow} is one place, and each of the {len(specs)} volumes needs its own: "
            "--cow auto, --cow SIZE or --cow vg:NAME"
        )


def check_together(prepared: Sequence[Prepared], host: Host) -> None:
    """Raise `Refused` where a volume of the group is in another's way."""
    for one, other in combinations(prepared, 2):
        for mine in _devices(one, host):
            for theirs in _devices(other, host):
                _refuse_same(mine, theirs, host)
        _refuse_same_file(one, other)
    for one in prepared:
        for other in prepared:
            if one is not other:
                _refuse_on_source(one, other, host)


def _devices(one: Prepared, host: Host) -> Iterator[_Device]:
    yield _Device("source", one.source.path, one.source.devno)
    if isinstance(one.destination, BlockDestination):
        path = one.destination.path
        yield _Device("destination", path, host.sysfs.devno_of(path))
    for devno in sorted(spare_devices(one.cow)):
        yield _Device("COW device", host.sysfs.node(devno), devno)


def _refuse_same(mine: _Device, theirs: _Device, host: Host) -> None:
    if mine.devno == theirs.devno:
        raise Refused(
            f"{mine.path} is the {mine.what} of one volume and the {theirs.what} of another",
            way_out=_OTHER,
        )
    for upper, lower in ((mine, theirs), (theirs, mine)):
        if lower.devno in host.sysfs.below(upper.devno):
            raise Refused(
                f"{upper.path}, the {upper.what} of one volume, lies on {lower.path}, the "
                f"{lower.what} of another",
                way_out=_OTHER,
            )
    pieces = _pieces(theirs.devno, host)
    for devno, extent in _pieces(mine.devno, host):
        if any(devno == other and extent.clip(their) is not None for other, their in pieces):
            raise Refused(
                f"{mine.path}, the {mine.what} of one volume, and {theirs.path}, the "
                f"{theirs.what} of another, share sectors of {host.sysfs.node(devno)}",
                way_out=_OTHER,
            )


def _pieces(devno: str, host: Host) -> list[tuple[str, Extent]]:
    """Give what a device is made of, as far as its linear targets lead; else the device."""
    size = sectors_down(host.sysfs.size(devno))
    whole = [(devno, Extent(Sectors(0), size))] if size else []
    name = _dm_name(devno, host)
    if host.dm is None or not name:
        return whole
    try:
        rows = host.dm.table(name).rows
    except DmFailed:  # it went meanwhile
        return whole
    pieces: list[tuple[str, Extent]] = []
    for row in rows:
        target = row.target
        if not isinstance(target, Linear):
            return whole
        wanted = Extent(target.offset, target.length)
        for lower, extent in _pieces_with_start(target.device, host):
            part = extent[1].clip(wanted)
            if part is not None:
                shift = part.start - extent[1].start + extent[0]
                pieces.append((lower, Extent(Sectors(shift), part.length)))
    return pieces


def _pieces_with_start(devno: str, host: Host) -> list[tuple[str, tuple[Sectors, Extent]]]:
    """Give the pieces of *devno*, each with where it starts below and where it is in *devno*."""
    at = Sectors(0)
    found = []
    for lower, extent in _pieces(devno, host):
        found.append((lower, (extent.start, Extent(at, extent.length))))
        at = Sectors(at + extent.length)
    return found


def _dm_name(devno: str, host: Host) -> str:
    try:
        return host.sysfs.dm_name(devno)
    except OSError:
        return ""


def _refuse_same_file(one: Prepared, other: Prepared) -> None:
    mine, theirs = one.destination, other.destination
    if isinstance(mine, ImageDestination) and isinstance(theirs, ImageDestination):
        paths = {mine.path, mine.partial}, {theirs.path, theirs.partial}
        mine_real, theirs_real = ({_real(path) for path in some} for some in paths)
        if mine_real & theirs_real:
            raise Refused(f"{mine.path} is the destination of two volumes", way_out=_OTHER)


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _refuse_on_source(one: Prepared, other: Prepared, host: Host) -> None:
    """Refuse an image, a COW file or a COW LV of one volume that lies on another's source."""
    sysfs, source = host.sysfs, other.source
    under: dict[str, frozenset[str]] = {}
    if isinstance(one.destination, ImageDestination):
        under[f"the image {one.destination.path}"] = sysfs.devices_of(one.destination.folder)
    if isinstance(one.cow, CowFileOnHost):
        parent = one.cow.path.parent
        while not parent.exists():
            parent = parent.parent
        under[f"the COW file {one.cow.path}"] = sysfs.devices_of(str(parent))
    if isinstance(one.cow, CowLv):
        try:
            paths = Lvm(host.run).vg(one.cow.vg).devices
        except CommandFailed:
            paths = ()
        devices = frozenset(sysfs.devno_of(path) for path in paths)
        under[f"a COW device in volume group {one.cow.vg}"] = devices
    for what, devices in under.items():
        if source.devno in devices.union(*(sysfs.below(devno) for devno in devices)):
            raise Refused(
                f"{what} of {one.source.path} would lie on {source.path}, which is copied too",
                way_out="give another place",
            )
