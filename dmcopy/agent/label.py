"""Label files: a disk opts in by a file on a partition of its own, beside the one that is written.

The file is ``dmcopy.toml`` in the root of a file system that is labelled ``DMCOPY``.  It gives a
partition of the same disk a name, and a policy whose destination is that name writes there.

Every disk that is plugged in may be a stranger's: only a file system of that label is looked into;
what the file says of a partition that is not on its disk, or of its own, is worth nothing; and a
file with any fault says nothing at all.  Faults are told (`Labels.faults`), and are no errors.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

from dmcopy.agent.partition import Partition, partition
from dmcopy.agent.policy import LABEL, is_plain
from dmcopy.errors import DmcopyError
from dmcopy.kernel import rootfile
from dmcopy.kernel.command import Commander
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Bytes

FILE_SYSTEM: Final = "DMCOPY"
FILE: Final = "dmcopy.toml"
_MOST: Final = Bytes(4096)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Named(NamedTuple):
    """One partition that a label file names."""

    label: str
    partuuid: str  # in small letters


def parse(text: str) -> tuple[Named, ...]:
    """Read a label file: one label and partuuid, or ``[[destination]]`` tables that have them.

    Raises `DmcopyError`.
    """
    try:
        said = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DmcopyError(" ".join(str(exc).split())) from exc
    tables = said["destination"] if said.keys() == {"destination"} else [said]
    if not isinstance(tables, list) or not tables:
        raise DmcopyError("destination: write [[destination]], once a partition")
    found = [_named(table) for table in tables]
    for what, values in zip(Named._fields, zip(*found, strict=True), strict=True):
        if len({*values}) != len(values):
            raise DmcopyError(f"a {what} is there twice")
    return tuple(found)


def _named(table: Any) -> Named:  # Any: TOML
    if not isinstance(table, dict) or table.keys() != {*Named._fields}:
        raise DmcopyError("it must say label and partuuid, and nothing else")
    label, partuuid = table["label"], table["partuuid"]
    if not isinstance(label, str) or not is_plain(label):
        raise DmcopyError(f"{label!r:.80} cannot be a label")
    if not isinstance(partuuid, str) or _UUID.fullmatch(partuuid.lower()) is None:
        raise DmcopyError(f"{partuuid!r:.80} cannot be a partuuid of a GPT")
    return Named(label, partuuid.lower())


class _Disk(NamedTuple):
    """What the label file of one disk comes to."""

    files: tuple[str, ...] = ()  # partitions with a file system of that label
    given: tuple[tuple[str, str], ...] = ()  # partition, and its label
    faults: tuple[str, ...] = ()


class Labels:
    """The labels of the partitions that are there at one moment; each disk is looked at once."""

    def __init__(self, sysfs: Sysfs, run: Commander, runtime: Path) -> None:
        """*runtime*: the directory of ours below /run."""
        self._sysfs = sysfs
        self._run = run
        self._point = runtime / LABEL
        self._disks: dict[str, _Disk] = {}

    def of(self, devno: str) -> frozenset[str]:
        """Give the labels that a partition has; raises OSError when it is gone."""
        return frozenset(label for one, label in self._beside(devno).given if one == devno)

    def named_by(self, devno: str) -> list[str]:
        """Give the partitions that the label file on the partition *devno* gives a label."""
        disk = self._beside(devno)
        return [one for one, _ in disk.given] if devno in disk.files else []

    def is_file_system(self, devno: str) -> bool:
        """Tell whether a device is a partition that would be looked into; looks into none."""
        if self._sysfs.parent(devno) is None:
            return False
        return partition(devno, self._sysfs, self._run).label == FILE_SYSTEM

    def faults(self, devno: str) -> tuple[str, ...]:
        """Say what is wrong with the label file of a disk, or of the disk of a partition."""
        return self._beside(devno).faults

    def find(self, label: str) -> list[str]:
        """Give all partitions that have *label*: more than one where it is not clear."""
        found = []
        for devno in sorted(os.listdir(self._sysfs.root / "dev" / "block")):
            try:
                if self._sysfs.parent(devno) is not None and label in self.of(devno):
                    found.append(devno)
            except OSError:  # it has just gone
                continue
        return found

    def _beside(self, devno: str) -> _Disk:
        disk = self._sysfs.parent(devno) or devno
        if disk not in self._disks:
            self._disks[disk] = self._look(disk)
        return self._disks[disk]

    def _look(self, disk: str) -> _Disk:
        there: dict[str, Partition] = {}
        for devno in sorted(self._sysfs.partitions(disk)):
            try:
                there[devno] = partition(devno, self._sysfs, self._run)
            except OSError:
                continue
        files = tuple(devno for devno, found in there.items() if found.label == FILE_SYSTEM)
        if not files:
            return _Disk()
        if len(files) > 1:  # the copy of a source may bring such a file system along
            nodes = " and ".join(self._sysfs.node(devno) for devno in files)
            why = f"{nodes} both have a file system {FILE_SYSTEM}: neither is looked into"
            return _Disk(files, faults=(why,))
        node = self._sysfs.node(files[0])
        try:
            named = self._read(node, there[files[0]].kind)
        except (DmcopyError, OSError) as exc:
            return _Disk(files, faults=(str(exc),))
        given, faults = [], []
        for one in named:
            which = [devno for devno, found in there.items() if _is(found, one)]
            if len(which) == 1 and which[0] not in files:
                given.append((which[0], one.label))
                continue
            why = "which is its own" if which and which[0] in files else "which is not on this disk"
            why = "which is there twice" if len(which) > 1 else why
            faults.append(f"{FILE} on {node} names the partition {one.partuuid}, {why}")
        return _Disk(files, tuple(given), tuple(faults))

    def _read(self, node: str, kind: str) -> tuple[Named, ...]:
        if kind not in rootfile.KINDS:
            kinds = ", ".join(rootfile.KINDS)
            raise DmcopyError(f"{node} has a file system {kind or '?'}, and is not looked into"
                              f" (only {kinds} are)")  # fmt: skip
        text = rootfile.read(self._run, node, kind, FILE, most=_MOST, point=self._point)
        try:
            return parse(text)
        except DmcopyError as exc:
            raise DmcopyError(f"{FILE} on {node}: {exc}") from exc


def _is(found: Partition, named: Named) -> bool:
    return found.is_gpt and found.uuid.lower() == named.partuuid
