"""dm-snapshot's writer of the exception store, after drivers/md/dm-snap-persistent.c."""

from __future__ import annotations

import struct
from collections.abc import Sequence

ENTRY = 16


class KernelStore:
    """A COW device in memory, with chunks of *chunk* bytes; `commit` is one area write.

    Only the areas are kept: a data chunk is a number, its content is of no matter here.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.per_area = chunk // ENTRY
        self.areas: dict[int, bytearray] = {0: bytearray(chunk)}
        self.entries: list[tuple[int, int]] = []
        self._next = 2
        self._area, self._index = 0, 0

    def allocate(self) -> int:
        """persistent_prepare_exception: the next chunk that is no area."""
        new = self._next
        self._next += 1
        if self._next % (self.per_area + 1) == 1:
            self._next += 1
        return new

    def commit(self, olds: Sequence[int]) -> list[tuple[int, bytes, bytes]]:
        """Commit exceptions; give each area write as (area, before, after)."""
        writes: list[tuple[int, bytes, bytes]] = []
        before = bytes(self.areas[self._area])
        for old in olds:
            new = self.allocate()
            struct.pack_into("<2Q", self.areas[self._area], self._index * ENTRY, old, new)
            self.entries.append((old, new))
            self._index += 1
            if self._index == self.per_area:
                self.areas[self._area + 1] = bytearray(self.chunk)  # zeroed before it is full
                writes.append((self._area, before, bytes(self.areas[self._area])))
                self._area, self._index = self._area + 1, 0
                before = bytes(self.chunk)
        if self._index and olds:
            writes.append((self._area, before, bytes(self.areas[self._area])))
        return writes

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes of one area of the COW device."""
        chunk, start = divmod(offset, self.chunk)
        area, rest = divmod(chunk - 1, self.per_area + 1)
        assert rest == 0, f"chunk {chunk} is no area"
        assert start + length <= self.chunk
        return bytes(self.areas[area][start : start + length])
