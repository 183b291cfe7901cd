"""A persistent exception store in a file, written the way dm-snapshot writes one."""

from __future__ import annotations

import struct
from pathlib import Path

from dmcopy.units import Sectors, to_bytes

MAGIC = 0x70416E53


class StoreFile:
    """Chunks of *chunk* sectors; `save` adds an exception and the data it names."""

    def __init__(self, path: Path, chunk: Sectors, *, chunks: int = 1024) -> None:
        self.path = path
        self.chunk = chunk
        self.size = to_bytes(chunk)
        self.per_area = self.size // 16
        self.entries: list[tuple[int, int]] = []
        self.next = 2
        self.data = bytearray(self.size * chunks)
        struct.pack_into("<4I", self.data, 0, MAGIC, 1, 1, chunk)
        self.flush()

    def save(self, old: int, data: bytes, *, skip: int = 0) -> int:
        """Save *data* as the chunk *old*; leave *skip* chunks free before it."""
        new = self.next + skip
        while (new - 1) % (self.per_area + 1) == 0:
            new += 1  # an area is there
        self.next = new + 1
        area, index = divmod(len(self.entries), self.per_area)
        where = (1 + area * (self.per_area + 1)) * self.size + index * 16
        struct.pack_into("<2Q", self.data, where, old, new)
        self.entries.append((old, new))
        self.data[new * self.size : new * self.size + len(data)] = data
        return new

    def flush(self) -> None:
        """Put it into the file."""
        self.path.write_bytes(self.data)
