"""What is to be mounted or opened at boot, from fstab(5) and crypttab(5); reads only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.errors import CommandFailed, ProgramMissing
from dmcopy.kernel.command import Commander
from dmcopy.kernel.sysfs import Sysfs

_FILES: Final = (("fstab", 0), ("crypttab", 1))  # and the field that names the device
# By these a device and one that lies over all of it are called alike: blkid reads their content.
_CONTENT: Final = {"UUID": "UUID", "LABEL": "LABEL"}
_ENTRY: Final = {"PARTUUID": "PART_ENTRY_UUID", "PARTLABEL": "PART_ENTRY_NAME"}


class Entry(NamedTuple):
    """A line that is about a device."""

    file: str
    line: str
    named: str  # the device, as the line says it
    place: str  # where it is mounted; of crypttab, what it is opened as
    by_content: bool  # by what is on the device, so that a device over it answers as well


def entries_about(
    devno: str, sysfs: Sysfs, run: Commander, *, folder: Path = Path("/etc")
) -> list[Entry]:
    """Give the lines of fstab and crypttab that lead to the device now."""
    ids = _ids(sysfs.node(devno), run)
    found = []
    for file, field in _FILES:
        for words, line in _lines(folder / file):
            if len(words) <= field + (file == "fstab"):
                continue
            named = _unescape(words[field])
            place = _unescape(words[1 - field])
            tag, equals, value = named.partition("=")
            value = value.strip('"')
            if equals and tag in _CONTENT:
                if ids.get(_CONTENT[tag]) == value:
                    found.append(Entry(f"/etc/{file}", line, named, place, True))
            elif (equals and tag in _ENTRY and ids.get(_ENTRY[tag]) == value) or (
                not equals and _is(named, devno, sysfs)
            ):
                by_content = named.startswith(("/dev/disk/by-uuid/", "/dev/disk/by-label/"))
                found.append(Entry(f"/etc/{file}", line, named, place, by_content))
    return found


def holds(place: str, path: str) -> bool:
    """Tell whether *path* lies at or below the mount point *place*."""
    return path == place or path.startswith(place.rstrip("/") + "/")


def _lines(path: Path) -> Iterator[tuple[list[str], str]]:
    try:
        text = path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words, line.strip()


def _is(path: str, devno: str, sysfs: Sysfs) -> bool:
    try:
        return sysfs.devno_of(path) == devno
    except OSError:
        return False


def _ids(node: str, run: Commander) -> dict[str, str]:
    try:
        said = run.run(
            "blkid", "--probe", "--output", "export", "--", node, ok=(0, 2), changes=False
        ).stdout
    except (CommandFailed, ProgramMissing):
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in said.splitlines())}


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
