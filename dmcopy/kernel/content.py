"""What a device or image carries that has an identity: UUIDs, labels, names.

Through ``blkid --probe`` (libblkid asks the medium, not its cache), which says the very thing
that udev will say; partitions through ``sfdisk --json``.  Starts programs: not for the worker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from dmcopy.errors import CommandFailed, Refused
from dmcopy.kernel.command import Commander
from dmcopy.units import Bytes, Sectors, to_bytes, to_sectors

TABLES: Final = ("gpt", "dos")
# Types of the partition of a dos table that only holds others, which are numbered from 5
# (block/partitions/msdos.c:is_extended_partition).
_EXTENDED: Final = ("5", "f", "85")
_NOTHING: Final = 2
_AMBIVALENT: Final = 8
_NUMBER: Final = re.compile(r"(\d+)$")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What libblkid calls *kind*: ext4, xfs, LVM2_member, linux_raid_member, gpt ..."""

    kind: str
    uuid: str = ""
    label: str = ""
    parts: tuple[Part, ...] = ()  # of a partition table

    def __str__(self) -> str:
        """Give it as in a message: ``ext4 UUID=... (label data)``."""
        words = [self.kind]
        if self.uuid:
            words.append(f"{'PTUUID' if self.is_table else 'UUID'}={self.uuid}")
        if self.label:
            words.append(f"LABEL={self.label}")
        return " ".join(words)

    @property
    def is_table(self) -> bool:
        """Whether it is a partition table."""
        return self.kind in TABLES

    def uuids(self) -> Iterator[str]:
        """Give every identity that is seen from outside."""
        if self.uuid:
            yield self.uuid
        for part in self.parts:
            if part.uuid:
                yield part.uuid
            if part.content is not None:
                yield from part.content.uuids()

    def lines(self) -> Iterator[str]:
        """Say what is there, one thing a line."""
        yield str(self)
        for part in self.parts:
            name = f" PARTLABEL={part.name}" if part.name else ""
            inside = f": {part.content}" if part.content is not None else ""
            yield f"partition {part.number} PARTUUID={part.uuid}{name}{inside}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A partition: an extent of the device, with an identity and perhaps with a content."""

    number: int
    start: Sectors
    length: Sectors
    uuid: str
    name: str = ""
    content: Content | None = None


def content_of(run: Commander, path: str) -> Content | None:
    """Tell what *path* (a device or a file) carries; None for nothing that libblkid knows.

    Raises `Refused` where two signatures contradict each other, `CommandFailed` where it
    cannot be read.
    """
    found = _probe(run, path)
    if found is None or not found.is_table:
        return found
    return Content(kind=found.kind, uuid=found.uuid, parts=tuple(_parts(run, path)))


def _probe(run: Commander, path: str, *more: str) -> Content | None:
    argv = ("blkid", "--probe", "--output", "export", *more, "--", path)
    done = run.run(*argv, ok=(0, _NOTHING, _AMBIVALENT), changes=False)
    if done.status == _AMBIVALENT:
        raise Refused(
            f"{path} carries more than one signature, and they contradict each other",
            way_out=f"look at them: wipefs {path}",
        )
    return parse(done.stdout)


def parse(text: str) -> Content | None:
    """Read what ``blkid --output export`` says; None for no content."""
    lines = (line.partition("=") for line in text.splitlines())
    found = {key: _unescape(value) for key, _, value in lines}
    if "TYPE" in found:
        return Content(kind=found["TYPE"], uuid=found.get("UUID", ""), label=found.get("LABEL", ""))
    if "PTTYPE" in found:
        return Content(kind=found["PTTYPE"], uuid=found.get("PTUUID", ""))
    return None


def _unescape(value: str) -> str:
    # misc-utils/blkid.c:print_value writes a backslash before what a shell would read
    return re.sub(r"\\(.)", r"\1", value)


def _parts(run: Commander, path: str) -> Iterator[Part]:
    try:
        said = run.run("sfdisk", "--json", "--", path, changes=False).stdout
    except CommandFailed as exc:
        raise Refused(f"the partition table of {path} cannot be read: {exc}") from exc
    for number, row, sector in parse_table(said):
        start, length = Bytes(row["start"] * sector), Bytes(row["size"] * sector)
        where = ("--offset", str(start), "--size", str(length))
        yield Part(
            number=number,
            start=to_sectors(start),
            length=to_sectors(length),
            uuid=str(row.get("uuid", "")).lower(),
            name=row.get("name", ""),
            content=None if _is_extended(row) else _probe(run, path, *where),
        )


def parse_table(text: str) -> Iterator[tuple[int, dict[str, Any], int]]:  # Any: JSON
    """Read ``sfdisk --json``: number, row and sector size (bytes) of each partition.

    A partition of a dos table has no uuid of its own: as in /dev/disk/by-partuuid, it is made
    from the table's (block/partitions/msdos.c:set_info).
    """
    table = json.loads(text)["partitiontable"]
    for row in table.get("partitions", ()):
        found = _NUMBER.search(row["node"])
        assert found is not None, row
        number = int(found[1])
        if table["label"] == "dos":
            row["uuid"] = dos_partuuid(table["id"], number)
        yield number, row, int(table.get("sectorsize", to_bytes(Sectors(1))))


def dos_partuuid(disk: str, number: int) -> str:
    """Give the PARTUUID of partition *number* of the dos table with the id *disk*."""
    return f"{disk.removeprefix('0x')}-{number:02x}"


def _is_extended(row: dict[str, Any]) -> bool:  # Any: JSON
    """Tell whether there are only partitions in it: what blkid takes there for a dos table."""
    return str(row["type"]) in _EXTENDED
