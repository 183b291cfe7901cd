"""The persistent exception store, read-only, from bytes.

Layout (drivers/md/dm-snap-persistent.c): chunk 0 is the header; then areas, each one chunk
of 16-byte entries followed by the data chunks that it names.  Nothing here opens a device:
callers hand over the bytes that were read.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from dmcopy.core.geometry import ENTRY_SIZE, exceptions_per_area
from dmcopy.errors import DmcopyError
from dmcopy.units import Bytes, Chunks, Sectors, to_bytes

MAGIC: Final = 0x70416E53  # "SnAp"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<4I")  # magic, valid, version, chunk size (sectors)
_SHORTEST_READ: Final = 4096  # bytes: a page costs the device no more than a sector
_WORDS: Final = 2  # of an entry: old chunk (origin), new chunk (COW device); u64 little-endian


class StoreDamaged(DmcopyError):
    """What was read cannot be an exception store that the kernel wrote."""

    kind = "store-damaged"


class Header(NamedTuple):
    """Chunk 0 of the COW device."""

    valid: bool
    version: int
    chunk_size: Sectors

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Header:
        """Read it; raises `StoreDamaged` when it is none, or one that we cannot read."""
        if len(data) < _HEADER.size:
            raise StoreDamaged(f"no exception store: {len(data)} bytes of header")
        magic, valid, version, chunk_size = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise StoreDamaged(f"no exception store: magic {magic:#x} instead of {MAGIC:#x}")
        if version != VERSION:
            raise StoreDamaged(f"exception store of version {version}, we read {VERSION}")
        return cls(valid != 0, version, Sectors(chunk_size))

    def as_bytes(self) -> bytes:
        """Give the 16 bytes; the inverse of parse."""
        return _HEADER.pack(MAGIC, self.valid, self.version, self.chunk_size)


class CowException(NamedTuple):
    """*old* on the origin was saved to *new* on the COW device."""

    old: Chunks
    new: Chunks


def area_chunk(area: int, per_area: int) -> Chunks:
    """Give the chunk of the COW device that holds *area* (area_location)."""
    return Chunks(1 + area * (per_area + 1))


class Exceptions:
    """Committed exceptions as two arrays of the same length: 16 bytes each, no objects."""

    def __init__(self, words: array[int]) -> None:
        self._words = words
        self.old = words[0::_WORDS]
        self.new = words[1::_WORDS]

    def __len__(self) -> int:
        return len(self.old)

    def first(self, count: int) -> Exceptions:
        """Give the first *count* of them."""
        return Exceptions(self._words[: _WORDS * count])

    def __iter__(self) -> Iterator[CowException]:
        for old, new in zip(self.old, self.new, strict=True):
            yield CowException(Chunks(old), Chunks(new))


def committed(area: bytes | memoryview) -> Exceptions:
    """Give the entries of a piece of an area; stops at the first unused one.

    An entry is used when its new chunk is not 0, which is the header's (insert_exceptions).
    """
    words = array("Q")
    words.frombytes(area)
    if sys.byteorder == "big":
        words.byteswap()
    with suppress(ValueError):  # ValueError: there is no unused one
        words = words[: _WORDS * words[1::_WORDS].index(0)]
    return Exceptions(words)


class Cursor:
    """Where the table of a store ends, so that only what is new need be read.

    Areas are append-only, and the kernel zeroes an area on disk before the one before it is
    full (write_exception; persistent_commit_exception).  Use: while `more` after `feed`, read
    and feed again; when it is `in_doubt`, wait a few milliseconds before that.

    Most looks find nothing or little, so a look begins with about twice what the one before
    it found, and each further read of it is twice as long as the last.

    A read that races with the kernel's write of an area sees an entry's words one by one where
    the COW device is memory (brd, the page cache under a loop device).  A word that is not yet
    written is 0, for the area was zeroed.  A new chunk of 0 ends the table; an old chunk of 0
    may be chunk 0 of the origin or a word to come, so such an entry is believed only when it
    is met a second time.
    """

    def __init__(self, chunk_size: Sectors) -> None:
        self._per_area = exceptions_per_area(chunk_size)
        self._chunk = to_bytes(chunk_size)
        self._area = 0
        self._index = 0  # of the first entry in the area that was not seen yet
        self._skip = 0  # entries in what is read next that were seen already
        self._asked: int | None = None  # bytes; None when nothing was asked for
        self._ahead = 0  # bytes behind the next entry that the next read is to cover
        self._looked = 0  # bytes of entries that this look has found so far
        self._believed: tuple[int, int] | None = None  # position of a doubtful entry
        self.more = True
        self.in_doubt = False

    @property
    def position(self) -> tuple[int, int]:
        """The area and the index in it of the next entry."""
        return self._area, self._index

    def pending_read(self, block: Bytes) -> tuple[Bytes, Bytes]:
        """Give offset and length (bytes) of what to read next from the COW device.

        It begins at the logical *block* that holds the next entry, is a multiple of *block*
        and ends with the area at the latest.
        """
        within = self._index * ENTRY_SIZE
        start = within - within % block
        self._skip = (within - start) // ENTRY_SIZE
        wanted = max(within - start + self._ahead, _SHORTEST_READ)
        length = min(-(-wanted // block) * block, self._chunk - start)
        self._asked = length
        at = area_chunk(self._area, self._per_area) * self._chunk + start
        return Bytes(at), Bytes(length)

    def feed(self, data: bytes | memoryview) -> Exceptions:
        """Take what was read; give the exceptions that were not seen before.

        Raises ValueError for anything but the bytes that `pending_read` asked for, once.
        """
        if len(data) != self._asked:
            raise ValueError(f"{len(data)} bytes were fed, {self._asked} asked for")
        self._asked = None
        fresh = len(data) - self._skip * ENTRY_SIZE
        found = self._beyond_doubt(committed(data[self._skip * ENTRY_SIZE :]))
        self._index += len(found)
        self._looked += len(found) * ENTRY_SIZE
        all_used = len(found) * ENTRY_SIZE == fresh  # so there may be more behind what was read
        self.more = all_used or self.in_doubt
        if self.more:
            self._ahead = 2 * fresh
        else:
            self._ahead, self._looked = 2 * self._looked, 0
        if self._index == self._per_area:
            self._area += 1
            self._index = 0
        return found

    def _beyond_doubt(self, found: Exceptions) -> Exceptions:
        """Cut *found* before an entry for chunk 0 that is met for the first time."""
        self.in_doubt = False
        with suppress(ValueError):  # ValueError: there is none
            at = found.old.index(0)
            where = (self._area, self._index + at)
            if where != self._believed:
                self._believed = where
                self.in_doubt = True
                return found.first(at)
        return found
