"""What a device is called for ever: one name that it keeps from boot to boot, and how to find it.

Kernel names (sda, md0, dm-3) and numbers change.  What lasts: the UUID of a partition's table
entry, of an md array, of a dm device; the WWN of a disk, else its serial.  The first two are in
sysfs on newer kernels only (not on 6.1); else udev's database has them, and where udev does not
run, blkid(8) and mdadm(8) read them.

Not for: telling whether a device changed since a job began (that is `identity`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from dmcopy.errors import CommandFailed, ProgramMissing
from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander
from dmcopy.kernel.sysfs import Sysfs

# each kind, and how udev's rules match it; the first that a device has is its name
_MATCHES: Final[Mapping[str, tuple[str, ...]]] = {
    "partuuid": ('ENV{{DEVTYPE}}=="partition", ENV{{ID_PART_ENTRY_UUID}}=="{0}"',),
    "md_uuid": ('ENV{{DEVTYPE}}=="disk", ENV{{MD_UUID}}=="{0}"',),
    "dm_uuid": ('ENV{{DM_UUID}}=="{0}"',),
    "wwn": (
        'ENV{{DEVTYPE}}=="disk", ATTR{{wwid}}=="{0}"',
        'ENV{{DEVTYPE}}=="disk", ATTR{{device/wwid}}=="{0}"',
    ),
    "serial": (
        'ENV{{DEVTYPE}}=="disk", ATTR{{serial}}=="{0}"',
        'ENV{{DEVTYPE}}=="disk", ATTR{{device/serial}}=="{0}"',
    ),
}
KINDS: Final = tuple(_MATCHES)
# What stands for itself in a udev rule and in a TOML string: no quotes, no pattern of fnmatch(3).
_PLAIN: Final = re.compile(r"[A-Za-z0-9:._/ +=@-]{4,200}")
_MD_UUID_DIGITS: Final = 32


class Lasting(NamedTuple):
    """A name for ever: its kind (`KINDS`), and the name."""

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"

    def matches(self) -> tuple[str, ...]:
        """Give what a udev rule says to match the device, one expression for each way."""
        return tuple(text.format(self.value) for text in _MATCHES[self.kind])

    @property
    def is_plain(self) -> bool:
        """Tell whether it can stand in a udev rule."""
        return self.kind in _MATCHES and _PLAIN.fullmatch(self.value) is not None


def lasting(devno: str, sysfs: Sysfs, run: Commander) -> Lasting | None:
    """Give the name that the device has for ever; None when it has none that can be used.

    A partition has that of its own table entry or none: its disk's is not its own.
    """
    known = sysfs.identity(devno)
    if "partition" in known:
        found = Lasting("partuuid", _partuuid(devno, known, sysfs, run))
    elif str(known["kname"]).startswith("md"):
        found = Lasting("md_uuid", _md_uuid(devno, known, sysfs, run))
    else:
        kinds = ("dm_uuid", "wwn", "serial")
        kind = next((kind for kind in kinds if kind in known), "serial")
        found = Lasting(kind, str(known.get(kind, "")))
    return found if found.is_plain else None


def find(wanted: Lasting, sysfs: Sysfs, run: Commander) -> list[str]:
    """Give the devices, by devno, that have this name; more than one where there are twins."""
    there = sorted(os.listdir(sysfs.root / "dev" / "block"))
    return [devno for devno in there if _may_be(devno, wanted, sysfs, run)]


def _may_be(devno: str, wanted: Lasting, sysfs: Sysfs, run: Commander) -> bool:
    try:
        known = sysfs.identity(devno)
        is_partition = "partition" in known
        if is_partition != (wanted.kind == "partuuid") or not known["size_bytes"]:
            return False
        if str(known["kname"]).startswith("md") != (wanted.kind == "md_uuid") and not is_partition:
            return False
        return lasting(devno, sysfs, run) == wanted
    except OSError:  # it has just gone
        return False


def _partuuid(devno: str, known: Mapping[str, str | int], sysfs: Sysfs, run: Commander) -> str:
    if told := str(known.get("partuuid", "")):
        return told
    if udev.is_running() and (told := udev.properties(devno).get("ID_PART_ENTRY_UUID", "")):
        return told
    argv = ("blkid", "--probe", "--output", "export", "--", sysfs.node(devno))
    return _answer(run, *argv).get("PART_ENTRY_UUID", "")


def _md_uuid(devno: str, known: Mapping[str, str | int], sysfs: Sysfs, run: Commander) -> str:
    told = str(known.get("md_uuid", ""))
    if not told and udev.is_running():
        told = udev.properties(devno).get("MD_UUID", "")
    if not told:
        argv = ("mdadm", "--detail", "--no-devices", "--export", sysfs.node(devno))
        told = _answer(run, *argv).get("MD_UUID", "")
    # the kernel writes it with hyphens, mdadm in four groups with colons
    digits = re.sub(r"[^0-9a-f]", "", told.lower())
    if len(digits) != _MD_UUID_DIGITS:
        return ""
    return ":".join(digits[at : at + 8] for at in range(0, _MD_UUID_DIGITS, 8))


def _answer(run: Commander, *argv: str) -> dict[str, str]:
    """Run a program that answers in lines NAME=VALUE; nothing where it is missing or fails."""
    try:
        said = run.run(*argv, changes=False).stdout
    except (CommandFailed, ProgramMissing):
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in said.splitlines())}
