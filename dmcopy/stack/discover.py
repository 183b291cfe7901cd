"""What the source is, and which provider can fix a begin time on it.

The order of the questions matters: what nobody uses needs no layer (*idle*); a plain dm
device is *spliced*; everything else is refused with the reason and the way out.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from os import stat as os_stat
from typing import Final

from dmcopy.core.table import Table
from dmcopy.errors import Refused, UsageError
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.kernel.lvm import LVM_UUID, Lvm, Volume
from dmcopy.kernel.md import Array, Md
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.lvm_source import volume_of
from dmcopy.stack.names import Role, owner
from dmcopy.units import Bytes, Sectors, sectors_down

_LASTING_SECONDS: Final = 1.0

# Targets without a state of their own: a second device with the same table is the same device.
# A second instance of raid, thin, cache, integrity ... would fight the first over its metadata.
_STATELESS: Final = frozenset(
    {"linear", "striped", "unstriped", "zero", "error", "delay", "flakey", "dust"}
)

# What an origin's table names while it is copied: the source, or what the brake lays over it.
_UNDER_ORIGIN: Final = frozenset({Role.SOURCE, Role.GATE, Role.BRAKE, Role.METER})

_OWNERS: Final = (
    (
        "LVM-",
        "is an LVM logical volume in use, and LVM would undo a layer that it does not know",
        "copy an LVM snapshot of it (lvcreate -s), or stop what uses it",
    ),
    (
        "mpath-",
        "is a multipath map in use, and multipathd reloads its table whenever a path changes",
        "stop what uses it; to copy it live the next time, put a wrap over it before it is used "
        "again (dmcopy wrap)",
    ),
    (
        "CRYPT-",
        "is an encrypted device in use, and its table holds a key that cannot be moved",
        "copy the device under it, which is encrypted too; or put a wrap over it before it is used "
        "the next time (dmcopy wrap)",
    ),
)


class Provider(StrEnum):
    """How a begin time is fixed."""

    SPLICE = "splice"
    IDLE = "idle"
    MD_SPLIT = "md-split"  # a member of a RAID1
    LVM = "lvm"  # a snapshot by lvcreate
    LVM_THIN = "lvm-thin"  # a snapshot in the volume's pool


@dataclass(frozen=True, kw_only=True)
class Source:
    """The device to copy, as it was found."""

    path: str  # as the user named it
    devno: str
    node: str  # a path in /dev that is sure to exist
    length: Sectors
    logical_block: Bytes
    provider: Provider
    why: str
    dm_name: str | None
    table: Table | None  # live table, where it is a dm device
    mounts: tuple[str, ...]
    volume: Volume | None = None  # where LVM makes the snapshot


def discover(
    path: str, dm: Dm | None, sysfs: Sysfs, *, want_splice: bool = False, lvm: Lvm | None = None
) -> Source:
    """Look at *path*; raises `UsageError` if it is no block device, `Refused` if it can't be
    copied as of one instant.

    *dm* is None on a kernel without device-mapper.  *want_splice*: the user asked for a COW
    device, so a dm device is spliced even though nobody has it open now.
    """
    devno = block_device(path, sysfs)
    info, table = _dm_device(devno, dm)
    why_not = _why_no_splice(path, info, table) if info is not None and table is not None else None
    can_splice = table is not None and why_not is None
    mounts = tuple(sysfs.mounts_of(devno))
    # a dm device can be spliced whoever uses it; of another, a passing look is no reason to refuse
    lasting = 0.0 if can_splice else _LASTING_SECONDS
    users = _users(devno, sysfs, info, mounts, lasting=lasting)

    def source(provider: Provider, why: str, volume: Volume | None = None) -> Source:
        return Source(
            path=path,
            devno=devno,
            node=sysfs.node(devno),
            length=sectors_down(sysfs.size(devno)),
            logical_block=sysfs.queue(devno).logical_block,
            provider=provider,
            why=why,
            dm_name=info.name if info else None,
            table=table,
            mounts=mounts,
            volume=volume,
        )

    if sysfs.size(devno) == 0:
        raise Refused(f"{path} has no sectors", way_out="check that it is the device you mean")
    if info is not None and table is not None:
        _refuse_ours(path, info, table, dm)
        if (users or want_splice) and info.uuid.startswith(LVM_UUID) and lvm is not None:
            if info.read_only:
                raise _read_only(path)
            volume = volume_of(path, info, lvm)
            kind = ",".join(sorted(volume.layout))
            why = f"a logical volume ({kind}){', in use' if users else ''}"
            return source(Provider.LVM_THIN if volume.is_thin else Provider.LVM, why, volume)
        if users or want_splice:
            if why_not is not None:
                raise why_not
            return source(Provider.SPLICE, "a plain dm device" + (", in use" if users else ""))
    if users and Md(sysfs).is_array(devno):
        raise _bare_array(path, users[0], Md(sysfs).read(devno))
    if users:
        raise Refused(
            f"{path} is in use ({users[0]}) and is not a dm device, so nothing can be put "
            "under it while it is",
            way_out="stop what uses it, or have the application use a wrap from the next mount on: "
            f"unmount it, dmcopy wrap {path} NAME, and mount /dev/mapper/NAME",
        )
    return source(Provider.IDLE, "nobody has it open")


def _bare_array(path: str, user: str, array: Array) -> Refused:
    """Say why an md array that is in use cannot be spliced, and what can be done instead."""
    ways = f"stop what uses it, put a dm device over it (dmcopy wrap {path} NAME), and use that"
    if array.level == "raid1":
        ways += (
            "; or, as it is a RAID1, have a third member made and split off, for which it needs a "
            f"spare (mdadm {path} --add-spare DISK): --via md-split"
        )
    return Refused(
        f"{path} is in use ({user}) and is a bare md array, so nothing can be put under it "
        "while it is",
        way_out=ways,
    )


def block_device(path: str, sysfs: Sysfs, *, called: str | None = None) -> str:
    """Give the number of the source *path*; raises `UsageError`, which calls it so, for none."""
    subject = called or f"source {path}"
    try:
        mode = os_stat(path).st_mode
    except OSError as exc:
        raise UsageError(f"{subject}: {exc.strerror}") from exc
    if not stat.S_ISBLK(mode):
        raise UsageError(f"{subject} is not a block device")
    return sysfs.devno_of(path)


def _dm_device(devno: str, dm: Dm | None) -> tuple[DmInfo | None, Table | None]:
    if dm is None:
        return None, None
    for info in dm.devices():
        if info.devno == devno:
            return info, dm.table(info.name)
    return None, None


def _users(
    devno: str, sysfs: Sysfs, info: DmInfo | None, mounts: tuple[str, ...], *, lasting: float
) -> list[str]:
    """Name who uses the device: in words for a person, the most telling first.

    A process that has it open counts when it still has after *lasting* seconds.
    """
    users = [f"mounted on {mount}" for mount in mounts]
    if sysfs.is_swap(devno):
        users.append("swap")
    for holder in sorted(sysfs.holders(devno)):
        with suppress(FileNotFoundError):  # it has let go meanwhile
            users.append(f"held by {sysfs.kname(holder)}")
    for part in sorted(sysfs.partitions(devno)):
        with suppress(FileNotFoundError):
            name = sysfs.kname(part)
            theirs = _users(part, sysfs, None, (), lasting=lasting)
            users += [f"partition {name} {user}" for user in theirs]
            users += [f"partition mounted on {mount}" for mount in sysfs.mounts_of(part)]
    users += [f"open in {name} (pid {pid})" for pid, name in sysfs.openers(devno, lasting=lasting)]
    if info is not None and info.open_count and not users:
        users.append("open")
    return users


def in_use(devno: str, sysfs: Sysfs, *, lasting: float = 0.0) -> list[str]:
    """Name who uses a device that is no dm device, as `discover` does."""
    mounts = tuple(sysfs.mounts_of(devno))
    return _users(devno, sysfs, None, mounts, lasting=lasting)


def _refuse_ours(path: str, info: DmInfo, table: Table, dm: Dm | None) -> None:
    mine = owner(info.uuid)
    if mine is not None:
        raise Refused(
            f"{path} is the {mine.role} device of job {mine.job}",
            way_out="copy the device that the application uses",
        )
    if info.suspended:
        raise Refused(
            f"{path} is suspended", way_out=f"see who holds it; dmsetup resume {info.name}"
        )
    for under in dm.devices() if dm is not None else ():
        job = owner(under.uuid)
        if job is not None and job.role in _UNDER_ORIGIN and under.devno in table.devices():
            raise Refused(
                f"{path} is being copied already, by job {job.job}",
                way_out=f"wait for it (dmcopy status {job.job}); if it died: "
                f"dmcopy rescue {job.job}",
            )


def _why_no_splice(path: str, info: DmInfo, table: Table) -> Refused | None:
    for prefix, why, way_out in _OWNERS:
        if info.uuid.startswith(prefix):
            return Refused(f"{path} {why}", way_out=way_out)
    odd = sorted(table.kinds() - _STATELESS)
    if odd:
        return Refused(
            f"{path} has a target of kind {odd[0]}, which cannot be moved under a new layer",
            way_out="put a linear dm device over it that the application uses, or stop what "
            "uses it",
        )
    return _read_only(path) if info.read_only else None


def _read_only(path: str) -> Refused:
    return Refused(
        f"{path} is read-only, so a snapshot cannot be put under it",
        way_out="nobody writes to it: copy the device under it",
    )
