"""The exception store of the COW device, as it is now, and the chunks that were saved there.

Read only, and always O_DIRECT: dm-snapshot writes beneath the page cache of the COW device,
so a buffered read gives what was there when it was first read (lvmsync#58, KERNEL.md 2).

Kernel: drivers/md/dm-snap-persistent.c; the format itself is in core.exception_store.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dmcopy.core.exception_store import Cursor, Header
from dmcopy.core.extent import Extent
from dmcopy.core.snapshot_map import SnapshotMap
from dmcopy.errors import DmcopyError, PointInTimeLost, SourceFailed
from dmcopy.kernel.blkdev import pread_full
from dmcopy.units import Bytes, Sectors, chunk_start, to_bytes

_DOUBT_SECONDS: Final = 0.005  # far longer than the kernel takes to write one area to memory

PreadV = Callable[[int, Sequence[memoryview], int], int]


class ExceptionView(Protocol):
    """Which chunks were saved, and what they held."""

    @property
    def count(self) -> int:
        """How many exceptions there are."""

    def refresh(self) -> None:
        """Read what was added to the exception store since the last time."""

    def patch(self, at: Extent, data: memoryview) -> Bytes:
        """Put the chunks of *at* that were saved into *data*; give how many bytes."""


class NullView:
    """No exceptions, ever: the device is idle."""

    count = 0

    def refresh(self) -> None:
        """Do nothing."""

    def patch(self, at: Extent, data: memoryview) -> Bytes:
        """Leave *data* as it is."""
        del at, data
        return Bytes(0)


class CowView:
    """The exceptions of a persistent exception store.  One thread at a time."""

    def __init__(
        self,
        fd: int,
        path: str,
        *,
        chunk: Sectors,
        source: Sectors,
        block: Bytes,
        size: Callable[[], Sectors] | None = None,
        preadv: PreadV = os.preadv,
        sleep: Callable[[float], None] = time.sleep,
        saw: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """Read the store on *fd*, which is open with O_DIRECT and stays the caller's.

        *path* is for messages, *chunk* the chunk size of the snapshot, *source* the length
        of the source, *block* the logical block of the COW device, *size* asks for its length.
        *saw* is told the chunks of the source that were saved since the last time.
        """
        self._fd = fd
        self._path = path
        self._chunk = chunk
        self._block = block
        self._size = size
        self._preadv = preadv
        self._sleep = sleep
        self._saw = saw
        self._cursor = Cursor(chunk)
        self._map = SnapshotMap(chunk, source)
        self._memory: Final = mmap.mmap(-1, to_bytes(chunk))  # shared and page aligned
        self._area: Final = memoryview(self._memory)
        self._began = False

    @property
    def count(self) -> int:
        """How many exceptions there are."""
        return len(self._map)

    def saved(self) -> list[Extent]:
        """Give what of the source was saved, as far as it was read."""
        return self._map.extents()

    def refresh(self) -> None:
        """Read on from where the last one ended.

        Areas are append-only, and a committed entry never changes: an area that is written
        again repeats its old entries byte for byte, so a read that is torn by it sees them,
        or them and more.  Proof: test_refresh_reads_only_what_is_new and the lab's proofs.
        Raises `SourceFailed` when the COW device cannot be read.
        """
        if not self._began:
            self._check_header()
            self._began = True
        while True:
            offset, length = self._cursor.pending_read(self._block)
            self._read(self._area[:length], offset)
            news = self._cursor.feed(self._area[:length])
            if news:
                self._map.update(news, cow=self._size() if self._size is not None else None)
                if self._saw is not None:
                    self._saw(news.old)
            if not self._cursor.more:
                return
            if self._cursor.in_doubt:
                # Proof: test_entry_that_is_half_written_is_not_believed
                self._sleep(_DOUBT_SECONDS)

    def patch(self, at: Extent, data: memoryview) -> Bytes:
        """Overwrite in *data* what was saved; adjacent COW chunks come with one read."""
        patched = 0
        for run in self._map.runs(at):
            offset = to_bytes(chunk_start(run.new, self._chunk))
            if run.pieces[-1].size % self._block == 0:
                self._scatter([_part(data, at, piece) for piece in run.pieces], offset)
            else:
                self._scatter_with_bounce(list(run.pieces), at, data, offset)
            patched += sum(piece.size for piece in run.pieces)
        return Bytes(patched)

    def _scatter(self, views: list[memoryview], offset: Bytes) -> None:
        """Fill *views*, one behind the other, from *offset*; a short read is continued."""
        left = sum(map(len, views))
        position: int = offset
        while left:
            try:
                got = self._preadv(self._fd, views, position)
            except OSError as exc:
                raise self._failed(left, position, exc) from exc
            if got == 0:
                raise SourceFailed(f"COW device {self._path} ends at {position}, in a saved chunk")
            left -= got
            position += got
            while views and got >= len(views[0]):
                got -= len(views.pop(0))
            if got:
                views[0] = views[0][got:]

    def _scatter_with_bounce(
        self, pieces: list[Extent], at: Extent, data: memoryview, offset: Bytes
    ) -> None:
        """Fill *pieces* where the last one is no multiple of the COW device's block.

        That is the last chunk of a source whose length is not: the kernel saved only what
        the source has of it, in a whole chunk.
        """
        *whole, last = pieces
        if whole:
            self._scatter([_part(data, at, piece) for piece in whole], offset)
        position = offset + sum(piece.size for piece in whole)
        view = _part(data, at, last)
        for start in range(0, last.size, to_bytes(self._chunk)):
            size = min(to_bytes(self._chunk), last.size - start)
            rounded = -(-size // self._block) * self._block
            self._read(self._area[:rounded], Bytes(position + start))
            view[start : start + size] = self._area[:size]

    def _check_header(self) -> None:
        self._read(self._area[: self._block], Bytes(0))
        header = Header.parse(bytes(self._area[: self._block]))
        if header.chunk_size != self._chunk:
            raise DmcopyError(
                f"the exception store on {self._path} has chunks of {header.chunk_size} "
                f"sectors, not {self._chunk}"
            )
        if not header.valid:
            raise PointInTimeLost(
                "the snapshot is no longer valid: the kernel marked its exception store on "
                f"{self._path} invalid, because that is full or failed"
            )

    def _read(self, into: memoryview, offset: Bytes) -> None:
        try:
            pread_full(self._fd, into, offset)
        except OSError as exc:
            raise self._failed(len(into), offset, exc) from exc

    def _failed(self, size: int, offset: int, exc: OSError) -> SourceFailed:
        return SourceFailed(
            f"cannot read COW device {self._path}, {size} bytes at {offset}: {exc.strerror}"
        )


def _part(data: memoryview, at: Extent, piece: Extent) -> memoryview:
    start = to_bytes(Sectors(piece.start - at.start))
    return data[start : start + piece.size]
