"""Brings a RAID1 back to what it was before a member was split off (`md_split`).

By a job at its end, and by `dmcopy rescue` after a kill or a boot: from a record, which is one file
a job in the state directory, and from what md says of the array now.  It may be cut short anywhere,
and be called again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.errors import DmcopyError
from dmcopy.kernel import identity, md_member
from dmcopy.kernel.md import Array, Md
from dmcopy.kernel.md_member import Member, members
from dmcopy.kernel.mdadm import Mdadm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.kernel.whole_file import write_whole
from dmcopy.stack.md_frozen import thaw_left

_FAULTY_SECONDS: Final = 5.0


class SplitRecord(NamedTuple):
    """How an array was, and what may be held."""

    uuid: str
    devno: str
    name: str
    disks: int
    spare: Mapping[str, str | int]  # Sysfs.identity
    mounts: tuple[str, ...]  # that may be frozen


def write_record(path: Path, record: SplitRecord) -> None:
    """Write it durably: whole, or as it was."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps(record._asdict() | {"spare": dict(record.spare)})
    write_whole(path, text.encode(), mode=0o600)


def read_record(path: Path) -> SplitRecord | None:
    """Read a record; None where there is none."""
    try:
        said = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return SplitRecord(**(said | {"mounts": tuple(said["mounts"])}))


def split_jobs(folder: Path) -> list[str]:
    """Name the jobs that have such a record."""
    with suppress(FileNotFoundError):
        return sorted(path.name for path in folder.iterdir() if path.name[:1] != ".")
    return []


def thaw_split(path: Path) -> list[str]:
    """Thaw what a killed job may have left frozen; gives what was done."""
    record = read_record(path)
    return [f"thawed {mount}" for mount in thaw_left(record.mounts)] if record else []


def put_back(path: Path, sysfs: Sysfs, program: Mdadm) -> tuple[list[str], list[str]]:
    """Bring the array of a record back; gives what was done, and what was left.

    The record goes when nothing is left.  No record: nothing was changed, or all is back.
    """
    try:
        record = read_record(path)
    except (OSError, ValueError, TypeError, KeyError) as exc:
        return [], [f"the record {path} of a split array cannot be read: {exc}"]
    if record is None:
        return [], []
    done = [f"thawed {mount}" for mount in thaw_left(record.mounts)]
    left: list[str] = []
    try:
        done += _put_back(record, sysfs, program)
        path.unlink(missing_ok=True)
    except (DmcopyError, OSError) as exc:
        left.append(f"/dev/{record.name} is not what it was (record {path}): {exc}")
    return done, left


def _put_back(record: SplitRecord, sysfs: Sysfs, program: Mdadm) -> list[str]:
    md = Md(sysfs)
    array = _array_of(record, sysfs, md)
    spare = identity.find(record.spare, sysfs)
    done = []
    if array.disks == record.disks + 1:
        _fail(md, array, spare, record.disks)
        done += _remove(md, array, spare, sysfs, program)
        program.grow(array.path, record.disks)
        done.append(f"made {array.path} an array of {record.disks} again")
    elif array.disks != record.disks:
        raise DmcopyError(f"it has {array.disks} members now, and had {record.disks}")
    if spare is None:
        raise DmcopyError(f"its spare {record.spare['kname']} is not there")
    done += _remove(md, array, spare, sysfs, program)
    if spare not in [member.devno for member in members(md, array.devno)]:
        node = sysfs.node(spare)
        if program.member_uuid(node) != program.uuid(array.path):
            raise DmcopyError(
                f"{node}, which was its spare, holds something else now, and is left alone"
            )
        program.add_spare(array.path, node)
        done.append(f"gave {array.path} its spare {node} back")
    return done


def _array_of(record: SplitRecord, sysfs: Sysfs, md: Md) -> Array:
    """Find the array by its uuid; its number may be another since the machine was started."""
    for folder in sorted((sysfs.root / "block").glob("md*")):
        with suppress(OSError):
            array = md.read((folder / "dev").read_text().strip())
            if array.uuid == record.uuid:
                return array
    raise DmcopyError("it is not assembled")


def _fail(md: Md, array: Array, spare: str | None, disks: int) -> None:
    """Fail the member that was the spare, unless the array needs it: then it stays a member."""
    there = members(md, array.devno)
    ours = [m for m in there if m.devno == spare and m.slot is not None]
    others = [m for m in there if m.devno != spare and m.has_all]
    if not ours or len(others) < disks:
        return
    fd = md_member.open_state(ours[0].folder)
    try:
        if md_member.FAULTY not in md_member.words_of(fd):
            md_member.fail(fd)
    finally:
        os.close(fd)


def _remove(md: Md, array: Array, spare: str | None, sysfs: Sysfs, program: Mdadm) -> list[str]:
    """Take the member that was the spare out, if it has failed."""
    if _failed(md, array, spare) is None:
        return []
    assert spare is not None
    node = sysfs.node(spare)
    program.remove(array.path, node)
    deadline = time.monotonic() + _FAULTY_SECONDS
    while _failed(md, array, spare) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    return [f"took {node} out of {array.path}"]


def _failed(md: Md, array: Array, spare: str | None) -> Member | None:
    for member in members(md, array.devno):
        if member.devno == spare and md_member.FAULTY in member.state:
            return member
    return None
