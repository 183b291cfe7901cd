"""Why a block device must not be written: each reason as one line with a way out.

What, which device, why, what to do instead.  Everything but `refuse_signature` starts no
program, so that the worker can look again while it holds the device.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dmcopy.destinations.base import Surroundings
from dmcopy.errors import Refused
from dmcopy.kernel.identity import difference
from dmcopy.kernel.signature import signatures, table_ids
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Sectors, format_size, to_bytes

_LASTING_SECONDS: Final = 1.0  # mdadm, started by udev, opens an array for writing, for a moment
OTHER_DEVICE: Final = "name another destination"


def refuse_use(path: str, devno: str, around: Surroundings) -> None:
    """Raise `Refused` when the device is part of the job or somebody uses it."""
    _refuse_relatives(path, devno, around)
    refuse_busy(path, devno, around.sysfs)


def refuse_busy(path: str, devno: str, sysfs: Sysfs) -> None:
    """Raise `Refused` when somebody uses the device, whatever it is to a job."""
    for one in (devno, *sorted(sysfs.partitions(devno))):
        what = path if one == devno else f"{sysfs.kname(one)}, a partition of {path},"
        mounts = sysfs.mounts_of(one)
        if mounts:
            raise Refused(
                f"{what} is mounted on {mounts[0]}", way_out=f"unmount it or {OTHER_DEVICE}"
            )
        if sysfs.is_swap(one):
            raise Refused(f"{what} is in use as swap", way_out=f"swapoff it or {OTHER_DEVICE}")
        holders = sorted(_title(sysfs, holder) for holder in sysfs.holders(one))
        if holders:
            raise Refused(
                f"{what} is part of {', '.join(holders)}",
                way_out=f"take that down first or {OTHER_DEVICE}",
            )
        for loop, file in sysfs.loops().items():
            if one in sysfs.devices_of(file):
                raise Refused(
                    f"{what} is under the loop device {_title(sysfs, loop)}",
                    way_out=f"detach that (losetup --detach) or {OTHER_DEVICE}",
                )
        _refuse_writers(what, one, sysfs)


def _refuse_relatives(path: str, devno: str, around: Surroundings) -> None:
    sysfs, source = around.sysfs, around.source
    if devno == source:
        raise Refused(f"{path} is the source itself", way_out=OTHER_DEVICE)
    if devno in around.spare:
        raise Refused(f"{path} is in use by this job already", way_out=OTHER_DEVICE)
    if devno in sysfs.below(source):
        raise Refused(
            f"{path} holds the source {_title(sysfs, source)}: writing it would destroy that",
            way_out=OTHER_DEVICE,
        )
    if devno in sysfs.above(source):
        raise Refused(
            f"{path} lies on the source {_title(sysfs, source)}: writing it would change that",
            way_out=OTHER_DEVICE,
        )
    for spare in around.spare:
        if devno in sysfs.below(spare) | sysfs.above(spare):
            raise Refused(
                f"{path} shares its data with {_title(sysfs, spare)}, which this job uses",
                way_out=OTHER_DEVICE,
            )


def _refuse_writers(what: str, devno: str, sysfs: Sysfs) -> None:
    writers = sysfs.openers(devno, writing=True, lasting=_LASTING_SECONDS)
    if writers:
        pid, command = writers[0]
        raise Refused(
            f"{what} is open for writing by {command} (pid {pid})",
            way_out=f"end that or {OTHER_DEVICE}",
        )


def refuse_unfit(path: str, devno: str, length: Sectors, around: Surroundings) -> None:
    """Raise `Refused` when the device cannot take an image of *length*."""
    sysfs = around.sysfs
    if sysfs.is_read_only(devno):
        raise Refused(f"{path} is read-only", way_out=f"blockdev --setrw {path}, or {OTHER_DEVICE}")
    size, wanted = sysfs.size(devno), to_bytes(length)
    if size < wanted:
        raise Refused(
            f"{path} is too small: {size} bytes ({format_size(size)}), "
            f"the source has {wanted} ({format_size(wanted)})",
            way_out="name a device of at least that size",
        )
    ours, theirs = (sysfs.queue(one).logical_block for one in (devno, around.source))
    if ours > theirs:
        raise Refused(
            f"{path} has logical blocks of {ours} bytes, the source of {theirs}: "
            "what is on the source could not be used there",
            way_out=f"name a device with blocks of {theirs} bytes, or an image file",
        )


def refuse_signature(path: str, around: Surroundings) -> None:
    """Raise `Refused` when something is on the device; starts wipefs."""
    found = signatures(around.run, path)
    if found:
        raise Refused(
            f"{path} is not empty: it carries {', '.join(str(one) for one in found)}",
            way_out="give --overwrite-signature if it may be lost",
        )


def refuse_other(path: str, devno: str, around: Surroundings) -> None:
    """Raise `Refused` when it is not the device that the job has on record."""
    if around.identity is None:
        return
    old, new = around.identity, around.sysfs.identity(devno)
    key = difference(old, new)
    if key is not None:
        raise Refused(
            f"{path} is not the device it was when the job began: "
            f"{key} is {new.get(key, 'not known')}, was {old[key]}",
            way_out="bring the old device back, or begin a new job",
        )


def refuse_other_partition(path: str, around: Surroundings) -> None:
    """Raise `Refused` when it is not the partition that the job has on record; starts blkid.

    The kernel tells the UUID of a partition since 6.5 only.
    """
    assert around.identity is not None
    old = around.identity["partuuid"]
    new = table_ids(around.run, path).get("partuuid", "not known")
    if new != old:
        raise Refused(
            f"{path} is not the partition it was when the job began: its UUID is {new}, was {old}",
            way_out="bring the old one back, or begin a new job",
        )


@contextmanager
def refusing(path: str, sysfs: Sysfs | None = None) -> Iterator[None]:
    """Turn the kernel's refusal to open *path* into ours."""
    try:
        yield
    except OSError as error:
        raise _refusal(path, error.errno or 0, sysfs) from error


def _refusal(path: str, code: int, sysfs: Sysfs | None) -> Refused:
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        # O_CREAT under /dev would make a file there, and fill memory instead of a disk
        return Refused(f"there is no device {path}", way_out="look for it with lsblk")
    if code == errno.ENOTBLK:
        return Refused(
            f"{path} is not a block device", way_out=f"write image:{path} for an image file"
        )
    if code == errno.EBUSY:
        return Refused(
            f"{path} is claimed by {_claimants(path, sysfs)}", way_out=f"end that or {OTHER_DEVICE}"
        )
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Refused(
            f"{path} may not be written: {os.strerror(code)}",
            way_out=f"run as root, see blockdev --getro {path}, or {OTHER_DEVICE}",
        )
    return Refused(f"{path} cannot be opened: {os.strerror(code)}", way_out=OTHER_DEVICE)


def _claimants(path: str, sysfs: Sysfs | None) -> str:
    if sysfs is None:
        return "another"
    try:
        found = sysfs.openers(sysfs.devno_of(path))
    except OSError:
        found = []
    who = ", ".join(f"{command} (pid {pid})" for pid, command in found)
    return who or "the kernel or another mount namespace"


def _title(sysfs: Sysfs, devno: str) -> str:
    """Name a device as an administrator knows it."""
    try:
        name = sysfs.dm_name(devno)
        return f"/dev/mapper/{name}" if name else f"/dev/{sysfs.kname(devno).replace('!', '/')}"
    except OSError:
        return devno
