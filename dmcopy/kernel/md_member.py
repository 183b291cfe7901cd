"""The members of an md array, one by one, as sysfs has them.

Kernel: Documentation/admin-guide/md.rst, "dev-XXX"; drivers/md/md.c (state_show, state_store,
slot_show, offset_show, rdev_size_show, bb_show).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.kernel.md import Md
from dmcopy.units import Sectors

IN_SYNC: Final = "in_sync"
FAULTY: Final = "faulty"
WRITE_MOSTLY: Final = "write_mostly"
_NO_SLOT: Final = "none"
_PER_KIB: Final = 2  # sectors: dev-XXX/size is in KiB


@dataclass(frozen=True, kw_only=True)
class Member:
    """A device of an array at one moment."""

    devno: str
    folder: Path  # dev-sda of the array's attributes
    state: frozenset[str]  # in_sync, faulty, spare, write_mostly, ...
    slot: int | None  # None: it has no place in the array, as a spare or when it failed
    offset: Sectors  # where its data begins
    size: Sectors

    @property
    def is_spare(self) -> bool:
        """Whether it waits for a member to fail."""
        return self.slot is None and FAULTY not in self.state

    @property
    def has_all(self) -> bool:
        """Whether it holds all data of a mirror."""
        return self.slot is not None and self.state & {IN_SYNC, FAULTY} == {IN_SYNC}


def members(md: Md, devno: str) -> list[Member]:
    """Give the members of the array *devno*, failed ones too; raises OSError."""
    found = []
    for folder in sorted(md.folder(devno).glob("dev-*")):
        try:
            found.append(_member(folder))
        except OSError as exc:  # removed while we look (drivers/md/md.c:rdev_attr_show)
            if exc.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return found


def _member(folder: Path) -> Member:
    def text(name: str) -> str:
        return (folder / name).read_text().strip()

    slot = text("slot")
    return Member(
        devno=text("block/dev"),
        folder=folder,
        state=frozenset(text("state").split(",")),
        slot=None if slot == _NO_SLOT else int(slot),
        offset=Sectors(int(text("offset"))),
        size=Sectors(int(text("size")) * _PER_KIB),
    )


def has_bad_blocks(folder: Path) -> bool:
    """Tell whether there are sectors that md knows not to hold what was written."""
    names = ("bad_blocks", "unacknowledged_bad_blocks")
    return any((folder / name).read_text().strip() for name in names if (folder / name).exists())


def open_state(folder: Path) -> int:
    """Open a member's ``state``; whoever asked closes the descriptor."""
    return os.open(folder / "state", os.O_RDWR | os.O_CLOEXEC)


def fail(state_fd: int) -> None:
    """Have md take the member for failed from now on: it is neither written nor read any more."""
    os.pwrite(state_fd, FAULTY.encode(), 0)


def words_of(state_fd: int) -> frozenset[str]:
    """Read an open ``state`` anew."""
    return frozenset(os.pread(state_fd, 4096, 0).decode().strip().split(","))
