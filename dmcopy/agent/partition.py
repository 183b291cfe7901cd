"""What a partition is called in its table, and what is on it, as udev or blkid tells it."""

from __future__ import annotations

from typing import Final, NamedTuple

from dmcopy.errors import CommandFailed, ProgramMissing
from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander
from dmcopy.kernel.sysfs import Sysfs

_GPT: Final = "gpt"
_NOTHING_FOUND: Final = 2  # blkid's exit status; 8 is an ambivalent result
_AMBIVALENT: Final = 8


class Partition(NamedTuple):
    """What is known of one; "" for what is not."""

    scheme: str  # of the table: gpt, dos ...
    uuid: str
    name: str
    kind: str  # of the file system: ext4, vfat ...
    label: str  # of the file system

    @property
    def is_gpt(self) -> bool:
        """Tell whether its UUID is its own: an MBR has 4 bytes, and every copy of it the same."""
        return self.scheme == _GPT


def partition(devno: str, sysfs: Sysfs, run: Commander) -> Partition:
    """Look a partition up; raises OSError when it is gone."""
    told = udev.properties(devno) if udev.is_running() else {}
    entry, content = "ID_PART_ENTRY_", "ID_FS_"
    if f"{entry}SCHEME" not in told:  # no udev, or it was told to keep away
        entry, content = "PART_ENTRY_", ""
        argv = ("blkid", "--probe", "--output", "export", "--", sysfs.node(devno))
        try:
            said = run.run(*argv, ok=(0, _NOTHING_FOUND, _AMBIVALENT), changes=False).stdout
        except (CommandFailed, ProgramMissing):
            said = ""
        told = {name: value for name, _, value in (x.partition("=") for x in said.splitlines())}
    names = (*(entry + name for name in ("SCHEME", "UUID", "NAME")),
             *(content + name for name in ("TYPE", "LABEL")))  # fmt: skip
    return Partition(*(told.get(name, "") for name in names))
