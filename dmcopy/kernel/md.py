"""What md says of its arrays in sysfs, and the one file by which a resync is steered.

Reads, and one write; decides nothing.  Every method raises OSError for an array that is gone.

Kernel: Documentation/admin-guide/md.rst; drivers/md/md.c (array_state_show, action_show,
action_store, sync_completed_show).
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Bytes, Sectors, to_bytes

_NO_RESYNC_DUE: Final = "none"  # of resync_start; else the sector from which on it is due


class Action(StrEnum):
    """The words of ``sync_action``."""

    IDLE = "idle"
    RESYNC = "resync"  # after an unclean stop: make the members agree
    RECOVER = "recover"  # build a member that was missing
    CHECK = "check"  # read and count what does not agree
    REPAIR = "repair"  # ... and make it agree
    RESHAPE = "reshape"
    FROZEN = "frozen"  # none, and none is begun


@dataclass(frozen=True, kw_only=True)
class Array:
    """One array at one moment."""

    devno: str
    name: str  # the kernel's: md127
    uuid: str  # "" where md has none: metadata of another kind
    level: str  # raid0, raid1, raid5, ...
    disks: int  # that it has when it is whole
    degraded: int  # of them are missing
    state: str  # array_state
    action: str  # `Action`, or a word of a later kernel
    last_action: str  # the one that ended last; "" where md does not know
    resync_due: bool  # members may not agree, whether or not a resync runs
    mismatches: int  # sectors that did not agree when last looked
    done: Bytes | None  # of what the action has to do; None where md says nothing
    total: Bytes | None
    stripe: Bytes  # one of data over all members; 0 where there is none

    @property
    def path(self) -> str:
        """The node that devtmpfs gives it."""
        return f"/dev/{self.name}"

    @property
    def is_mirror(self) -> bool:
        """Whether what a read gives depends on the member that md takes."""
        return self.level in ("raid1", "raid10")


class Md:
    """The md arrays of this host."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs

    def folder(self, devno: str) -> Path:
        """Give the array's directory of attributes."""
        return self._sysfs.folder(devno) / "md"

    def is_array(self, devno: str) -> bool:
        """Tell whether the device is an md array (a partition of one is none)."""
        return (self.folder(devno) / "array_state").is_file()

    def read(self, devno: str) -> Array:
        """Read what there is to know of an array."""
        folder = self.folder(devno)

        def text(name: str) -> str:
            # an attribute that this level does not have, or that md cannot tell now
            with suppress(OSError):
                return (folder / name).read_text().strip()
            return ""

        def number(name: str) -> int:
            word = text(name).split(" ")[0]
            return int(word) if word.isdecimal() else 0

        done, total = _sync_completed(text("sync_completed"))
        return Array(
            devno=devno,
            name=folder.parent.name,
            uuid=text("uuid"),
            level=text("level"),
            disks=number("raid_disks"),
            degraded=number("degraded"),
            state=(folder / "array_state").read_text().strip(),
            action=text("sync_action") or Action.IDLE,  # raid0 has no such attribute
            last_action=text("last_sync_action"),
            resync_due=text("resync_start") not in ("", _NO_RESYNC_DUE),
            mismatches=number("mismatch_cnt"),
            done=done,
            total=total,
            stripe=self._sysfs.queue(devno).optimal_io if number("chunk_size") else Bytes(0),
        )

    def below(self, devno: str) -> list[Array]:
        """Read the arrays that hold the data of *devno*, which may be one itself."""
        devices = sorted({devno, *self._sysfs.below(devno)})
        found = []
        for one in devices:
            try:
                if self.is_array(one):
                    found.append(self.read(one))
            except OSError as exc:  # it went while we look (drivers/md/md.c:md_attr_show)
                if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.EBUSY):
                    raise
        return found

    def act(self, devno: str, action: str) -> None:
        """Write ``sync_action``; md has stopped what ran when this returns (action_store)."""
        (self.folder(devno) / "sync_action").write_text(action)


def _sync_completed(text: str) -> tuple[Bytes | None, Bytes | None]:
    """Read ``123 / 456`` (sectors); ``none`` and ``delayed`` say nothing."""
    done, slash, total = text.partition(" / ")
    if slash and done.isdecimal() and total.isdecimal():
        return to_bytes(Sectors(int(done))), to_bytes(Sectors(int(total)))
    return None, None
