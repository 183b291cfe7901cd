"""What the superblock of ext2, ext3 and ext4 tells of who mounted, checked or froze it last.

The only trace, on the device itself, of a write that no counter of this boot has seen: made
while another system ran.  A mount counts itself and notes the time at once
(fs/ext4/super.c:ext4_setup_super); e2fsck notes the time of a full check; the time of the last
write of the superblock changes with each of these, with an unmount and with a freeze.

Not for other file systems: that of XFS and btrfs says no such thing, or changes all the time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

HEAD: Final = 4096  # bytes from the beginning of the device that are needed

_AT: Final = 1024  # of struct ext4_super_block (fs/ext4/ext4.h)
_MAGIC: Final = 0xEF53
# s_mtime u32 0x2c, s_wtime u32 0x30, s_mnt_count u16 0x34, s_max_mnt_count u16, s_magic u16 0x38
_TIMES: Final = struct.Struct("<IIHHH")
_TIMES_AT: Final = 0x2C
_LASTCHECK: Final = (struct.Struct("<I"), 0x40)
_UUID: Final = (struct.Struct("<16s"), 0x68)

# a write of the superblock that the running system makes may come so long after it was looked at
_GRACE_SECONDS: Final = 15.0


@dataclass(frozen=True, kw_only=True)
class MountStamp:
    """The words of one superblock; times in seconds since 1970, by the clock of who wrote them."""

    uuid: str
    mounts: int  # since the last check
    mounted: int  # when it was last mounted for writing
    checked: int  # when it was last checked in full
    written: int  # when the superblock was last written

    @classmethod
    def parse(cls, head: bytes | memoryview) -> Self | None:
        """Read the first `HEAD` bytes of a device; None where there is no ext superblock."""
        mounted, written, mounts, _, magic = _TIMES.unpack_from(head, _AT + _TIMES_AT)
        if magic != _MAGIC:
            return None
        (checked,) = _LASTCHECK[0].unpack_from(head, _AT + _LASTCHECK[1])
        (uuid,) = _UUID[0].unpack_from(head, _AT + _UUID[1])
        return cls(
            uuid=uuid.hex(), mounts=mounts, mounted=mounted, checked=checked, written=written
        )

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:  # Any: JSON
        """Read what `as_json` gave."""
        return cls(**kept)

    def stranger(self, now: MountStamp | None, *, seen: float | None) -> str | None:
        """Say what tells that somebody else has written since; None when nothing does.

        *seen* is when this stamp was last known to be the latest, if the system went down
        within seconds of that; None when it ran on for longer, so that it may have frozen or
        unmounted the file system itself.
        """
        if now is None:
            return "it has no ext superblock any more"
        if now.uuid != self.uuid:
            return "it carries another file system"
        if (now.mounts, now.mounted) != (self.mounts, self.mounted):
            return "its file system was mounted since"
        if now.checked != self.checked:
            return "its file system was checked since"
        if seen is not None and now.written > seen + _GRACE_SECONDS:
            return "its superblock was written after the machine went down"
        return None
