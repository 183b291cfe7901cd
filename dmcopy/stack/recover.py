"""Find what jobs left in the kernel and put it right, with nothing but the kernel to go by.

Everything of ours has a dm uuid that names the job and the role, and the ``-source`` device
*is* the origin's original table.  So a job can be taken apart without its journal: whichever
device leads to our source, or to a layer of the brake over it (`gate`), gets the source's table
back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.core.table import Table
from dmcopy.core.targets.snapshot import SnapshotOrigin
from dmcopy.errors import DmcopyError, DmFailed, DmMissing
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.counters import forget_counters
from dmcopy.stack.cow import cow_file_name
from dmcopy.stack.hold import resume_unchanged
from dmcopy.stack.layers import LAYERS, Layers
from dmcopy.stack.lvm_view import snapshot_volumes
from dmcopy.stack.names import Role, lv_owner, lv_tag, owner
from dmcopy.stack.plan import signals_deferred
from dmcopy.stack.steps import remove_device, restore_origin

log = logging.getLogger(__name__)

_HOLD_LIMIT: Final = 10.0  # seconds; a rescue may take longer than an everyday end

# Top first: what is above must go before what it uses.
_ORDER = (Role.PART, Role.TWIN, *LAYERS, Role.SNAP, Role.COW, Role.SPARE, Role.LEG, Role.SOURCE)


@dataclass(frozen=True)
class Origin:
    """A device that still has, or is about to get, a table of ours."""

    name: str
    live: bool  # the live table is ours; else only the one in the inactive slot


@dataclass
class Remains:
    """What the kernel holds of one job."""

    job: str
    devices: dict[Role, DmInfo] = field(default_factory=dict)
    origins: list[Origin] = field(default_factory=list)
    loops: list[tuple[str, str]] = field(default_factory=list)  # devno, backing file
    split: bool = False  # a member of an md array is split off (stack.md_split_back)
    lvs: list[DmInfo] = field(default_factory=list)  # active LVs with its name

    def lines(self) -> list[str]:
        """Say what is there, a line each."""
        return [
            *(
                f"{origin.name} has "
                + ("a table of ours" if origin.live else "a table of ours loaded")
                for origin in self.origins
                if not self.is_of_lvm
            ),
            *(f"device {info.name}" for info in self.devices.values() if owner(info.uuid)),
            *(f"logical volume /dev/mapper/{info.name}" for info in self.lvs),
            *(["a member that is split off its md array"] if self.split else []),
            *(f"loop device over {file}" for file in sorted(self.cow_files())),
        ]

    @property
    def is_of_lvm(self) -> bool:
        """Whether the snapshot is one that LVM made."""
        source = self.devices.get(Role.SOURCE)
        return source is not None and owner(source.uuid) is None

    def cow_files(self) -> set[str]:
        """Give the COW files that are known to be ours by their name.

        A loop device under the COW device may as well be the user's own, over a file of his
        (``--cow /dev/loop0``).  A file that he named himself (``--cow FILE:SIZE``) is in the
        journal.
        """
        ours = cow_file_name(self.job)
        return {file for _, file in self.loops if Path(file).name == ours}


def find_remains(dm: Dm, sysfs: Sysfs) -> dict[str, Remains]:
    """Look for devices of ours; gives what was found by job.

    A job may begin or end meanwhile; then some of its devices are found, or none.
    """
    found: dict[str, Remains] = {}
    devices = dm.devices()
    for info in devices:
        mine = owner(info.uuid)
        if mine is not None:
            found.setdefault(mine.job, Remains(mine.job)).devices[mine.role] = info
        elif (job := lv_owner(info.name, info.uuid)) is not None:
            found.setdefault(job, Remains(job)).lvs.append(info)
    for job, volume in snapshot_volumes(dm, devices).items():
        # a COW device of ours is in an LV of that name too, and is no snapshot
        remains = found.setdefault(job, Remains(job))
        remains.devices = volume.by_role() | remains.devices
    for remains in found.values():
        source = remains.devices.get(Role.SOURCE)
        if source is not None:
            remains.origins = _origins(dm, devices, Layers(dm, remains.job))
        cow = remains.devices.get(Role.COW)
        if cow is not None:
            with suppress(DmMissing):  # its job ends right now
                remains.loops = _loops(sysfs, dm.deps(cow.name))
    return found


def _origins(dm: Dm, devices: Iterable[DmInfo], layers: Layers) -> list[Origin]:
    origins = []
    for info in devices:
        if owner(info.uuid) is not None:
            continue  # the layers lead to the source as well
        with suppress(DmFailed):  # it may have gone meanwhile
            if layers.is_origin(dm.table(info.name)):
                origins.append(Origin(info.name, True))
            elif info.inactive and layers.is_origin(dm.table(info.name, inactive=True)):
                origins.append(Origin(info.name, False))
    return origins


def _loops(sysfs: Sysfs, devnos: Iterable[str]) -> list[tuple[str, str]]:
    loops = []
    for devno in devnos:
        with suppress(FileNotFoundError):  # it may have gone meanwhile
            file = sysfs.loop_backing_file(devno).removesuffix(" (deleted)")
            if file:
                loops.append((devno, file))
    return loops


class TakenApart(NamedTuple):
    """What was done, what could not be, and how long an origin's writes were held (seconds)."""

    done: tuple[str, ...]
    left: tuple[str, ...]
    held: float | None


def let_go(dm: Dm, remains: Remains) -> list[str]:
    """Let every write go on that a dead job holds, and leave all else; gives what was left.

    Signals wait until it is over.
    """
    with signals_deferred():
        left = _resume_below(dm, remains)
        try:
            Layers(dm, remains.job).let_go(limit=_HOLD_LIMIT)
            for origin in remains.origins:
                info = dm.info(origin.name)
                if info is not None:
                    resume_unchanged(dm, info)
        except DmcopyError as exc:
            left.append(str(exc))
    return left


def take_apart(dm: Dm, remains: Remains) -> TakenApart:
    """Undo everything that *remains* of a job.

    Goes on after a failure.  An origin comes first: its writes matter more than our devices.
    Signals wait until it is over.
    """
    done: list[str] = []
    left: list[str] = []
    holds: list[float] = []
    layers = Layers(dm, remains.job)
    with signals_deferred():
        left += _resume_below(dm, remains)
        for lv in remains.lvs:
            if lv.inactive:  # LVM cannot remove an LV whose loaded table holds another device
                dm.clear(lv.name)
        try:
            layers.let_go(limit=_HOLD_LIMIT)
        except DmcopyError as exc:  # what is held goes on when its time is over
            left.append(str(exc))
        for origin in remains.origins:
            try:
                done += _release_origin(dm, origin, remains, layers, holds)
            except DmcopyError as exc:
                left.append(str(exc))
            forget_counters(dm, origin.name, remains.job)
        for role in _ORDER:
            info = remains.devices.get(role)
            if info is None or owner(info.uuid) is None:  # what is LVM's goes with the LV
                continue
            try:
                if info.suspended:
                    dm.resume(info.name, lockfs=False)
                remove_device(dm, info.name, info.uuid)
                done.append(f"removed {info.name}")
            except DmcopyError as exc:
                left.append(str(exc))
    return TakenApart(tuple(done), tuple(left), max(holds, default=None))


def _resume_below(dm: Dm, remains: Remains) -> list[str]:
    """Resume what was being made larger; gives what was left.

    It comes before the origin: a write of the origin's that waits for the COW device would
    keep the swap waiting.  The longer table that may be loaded is as good as the shorter one.
    """
    left: list[str] = []
    cow = remains.devices.get(Role.COW)
    for info in (*remains.lvs, *([cow] if cow is not None else [])):
        if info.suspended:
            try:
                dm.resume(info.name, lockfs=False)
            except DmcopyError as exc:
                left.append(str(exc))
    return left


def _release_origin(
    dm: Dm, origin: Origin, remains: Remains, layers: Layers, holds: list[float]
) -> list[str]:
    info = dm.info(origin.name)
    if info is None:
        return []
    if not origin.live:
        dm.clear(origin.name)
        if info.suspended:
            dm.resume(origin.name, lockfs=False)
        return [f"dropped the loaded table of {origin.name}"]
    source = remains.devices[Role.SOURCE]
    original = dm.table(source.name)
    if owner(source.uuid) is None:  # LVM's: what is under it is LVM's to take out
        original = Table.of(SnapshotOrigin(original.length, source.devno))
        if dm.table(origin.name) == original:
            resume_unchanged(dm, info)
            return []
    held = restore_origin(dm, origin.name, original, layers.is_origin, limit=_HOLD_LIMIT)
    holds += [held] if held is not None else []
    return [f"gave {origin.name} its table back"]


def remove_lvs(lvm: Lvm, job: str) -> tuple[list[str], list[str]]:
    """Remove the LVs that carry the tag of *job*; gives what was done, and what was left.

    Does nothing where LVM is not installed.
    """
    done: list[str] = []
    left: list[str] = []
    if not lvm.is_installed:
        return done, left
    tag = lv_tag(job)
    try:
        found = lvm.find(tag)
    except DmcopyError as exc:
        return done, [f"cannot look for logical volumes with the tag {tag}: {exc}"]
    for lv in found:
        try:
            lvm.remove(lv.vg, lv.name, tag=tag)
            done.append(f"removed logical volume {lv.full_name}")
        except DmcopyError as exc:
            left.append(f"cannot remove logical volume {lv.full_name}: {exc}")
    return done, left


def remove_files(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Remove COW files and unfinished images; gives what was done, and what was left."""
    done: list[str] = []
    left: list[str] = []
    for file in files:
        try:
            Path(file).unlink()
            done.append(f"removed {file}")
        except FileNotFoundError:
            continue
        except OSError as exc:
            left.append(f"cannot remove {file}: {exc.strerror}")
    return done, left
