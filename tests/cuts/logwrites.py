"""The log of dm-log-writes: each write to a disk, so that the disk can be had as of any of them.

Layout (drivers/md/dm-log-writes.c, Documentation/admin-guide/device-mapper/log-writes.rst): the
super block in sector 0; then for each entry one sector with its head, and what was written.

The kernel logs a write when it is *durable*: a flush is preceded by the writes that were complete
when it was submitted, in the order of their completion; a FUA write comes when it is complete.
So the disk as of a flush, `Replay.to` that entry, is what a power failure leaves when the disk's
volatile cache is lost.  Between two flushes any part of the cache may have been written already,
and `Replay.to` asks for each write whether it was.

A plain write that is followed by a FUA write of the same sectors, with no flush between them,
stands behind it in the log; neither dm-snapshot nor jbd2 does that.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterator
from enum import IntFlag
from typing import Final, NamedTuple

MAGIC: Final = 0x6A736677736872
_VERSION: Final = 1
# magic, version, entries (u64 each), size of a sector in bytes (u32)
_SUPER: Final = struct.Struct("<QQQI")
# sector, sectors, flags, bytes of data in the head's own sector (u64 each)
_HEAD: Final = struct.Struct("<4Q")


class Flags(IntFlag):
    """What kind of entry it is."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    METADATA = 16


class Entry(NamedTuple):
    """One entry; positions and lengths in bytes."""

    offset: int  # on the disk
    length: int
    flags: Flags
    at: int  # where in the log the data is
    mark: str = ""

    @property
    def writes(self) -> bool:
        return self.length > 0 and not self.flags & (Flags.DISCARD | Flags.MARK)


def read_log(fd: int, *, cut: bool = False) -> list[Entry]:
    """Read all entries that the log on *fd* says it has; raises ValueError where it is none.

    The super block is written with a mark or a FUA write only.  A log that was *cut* goes on
    behind it, up to the zeroes that its device held before.
    """
    return list(_entries(fd, cut=cut))


def _entries(fd: int, *, cut: bool) -> Iterator[Entry]:
    magic, version, count, sector = _SUPER.unpack(_read(fd, _SUPER.size, 0))
    if (magic, version) != (MAGIC, _VERSION):
        raise ValueError(f"no log of dm-log-writes: magic {magic:#x}, version {version}")
    at = sector
    for number in itertools.count():
        head = _read(fd, sector, at) if cut or number < count else b""
        if not any(head):
            return
        start, sectors, bits, inline = _HEAD.unpack_from(head)
        flags = Flags(bits)
        mark = head[_HEAD.size : _HEAD.size + inline].decode() if flags & Flags.MARK else ""
        entry = Entry(start * sector, sectors * sector, flags, at + sector, mark)
        yield entry
        at += sector + (0 if flags & Flags.DISCARD else entry.length)


def _read(fd: int, length: int, at: int) -> bytes:
    data = os.pread(fd, length, at)
    if len(data) != length:
        raise ValueError(f"the log ends at byte {at + len(data)}, in the middle of an entry")
    return data


class Replay:
    """Makes a disk what it was as of any entry of a log, forward only.

    *image* is open for writing and holds what the disk held before the log began; *cut* as for
    `read_log`.
    """

    def __init__(self, log: int, image: int, *, cut: bool = False) -> None:
        self._log = log
        self._image = image
        self.entries = read_log(log, cut=cut)
        self._durable = 0  # entries that are written for good
        self._undo: list[tuple[int, bytes]] = []

    def to(self, count: int, survives: Callable[[Entry], bool]) -> None:
        """Make the disk what a power failure after the first *count* entries leaves.

        *survives* is asked for each write that no flush made durable.
        """
        last = max((n + 1 for n in range(count) if self.entries[n].flags & Flags.FLUSH), default=0)
        assert last >= self._durable, "forward only"
        for offset, old in reversed(self._undo):
            os.pwrite(self._image, old, offset)
        self._undo.clear()
        for entry in self.entries[self._durable : last]:
            self._write(entry)
        self._durable = last
        for entry in self.entries[last:count]:
            if entry.writes and (entry.flags & Flags.FUA or survives(entry)):
                self._undo.append((entry.offset, os.pread(self._image, entry.length, entry.offset)))
                self._write(entry)
        os.fsync(self._image)

    def _write(self, entry: Entry) -> None:
        if entry.writes:
            os.pwrite(self._image, _read(self._log, entry.length, entry.at), entry.offset)
