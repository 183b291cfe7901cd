"""What a device carries: file system, PV, md member, partition table.

Through wipefs, because it lists every signature where ``blkid -p`` gives one, and nothing at
all (exit status 8) when two contradict each other.  Starts programs: not for the worker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from dmcopy.kernel.command import Commander
from dmcopy.units import Bytes

_NOTHING_FOUND: Final = 2  # blkid's exit status; 8 is an ambivalent result
_AMBIVALENT: Final = 8


class Signature(NamedTuple):
    """One signature found on a device; *usage* and *kind* are libblkid's words."""

    kind: str  # ext4, LVM2_member, linux_raid_member, gpt, swap ...
    usage: str  # filesystem, raid, crypto, partition-table, other
    offset: Bytes
    label: str = ""
    uuid: str = ""

    def __str__(self) -> str:
        """Give it as in a message: ``ext4 (label data)``."""
        return f"{self.kind} (label {self.label})" if self.label else self.kind


def signatures(run: Commander, path: str) -> list[Signature]:
    """List the signatures on *path*; raises `CommandFailed` when it cannot be read."""
    argv = ("wipefs", "--no-act", "--json", "--output", "OFFSET,TYPE,USAGE,LABEL,UUID")
    return parse(run.run(*argv, "--", path, changes=False).stdout)


def parse(text: str) -> list[Signature]:
    """Read what ``wipefs --json`` says; nothing at all means no signature."""
    if not text.strip():
        return []
    return [
        Signature(
            kind=found["type"],
            usage=found["usage"] or "",
            offset=Bytes(int(found["offset"], 0)),
            label=found["label"] or "",
            uuid=found["uuid"] or "",
        )
        for found in json.loads(text)["signatures"]
    ]


def table_ids(run: Commander, path: str) -> Mapping[str, str]:
    """Give ``partuuid`` of a partition, and ``ptuuid`` of the partition table it carries."""
    argv = ("blkid", "--probe", "--output", "export", "--", path)
    found = run.run(*argv, ok=(0, _NOTHING_FOUND, _AMBIVALENT), changes=False)
    lines = (line.partition("=") for line in found.stdout.splitlines())
    names = {"PART_ENTRY_UUID": "partuuid", "PTUUID": "ptuuid"}
    return {names[key]: value for key, _, value in lines if key in names}
