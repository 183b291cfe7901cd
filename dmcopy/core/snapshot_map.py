"""Which chunks of the source are saved in the snapshot, and where on the COW device.

Compact: 8 bytes an exception, and some for each bucket, of which there are at most 16,384.
A bucket is an array of 64-bit words, old chunk (within the bucket) above new chunk, so that
sorting the words sorts by old chunk; it is sorted when it is looked at.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from dmcopy.core.exception_store import CowException, Exceptions, StoreDamaged
from dmcopy.core.extent import Extent
from dmcopy.core.geometry import exceptions_per_area
from dmcopy.units import Chunks, Sectors, chunk_of, chunk_start, chunks_for

_SMALLEST_BUCKET: Final = 4096  # chunks
_MOST_BUCKETS: Final = 16384
_NEW_BITS: Final = 40  # of a word: 4 EiB of COW device in chunks of 4 MiB, 4 PiB in 4 KiB
_NEW_MASK: Final = (1 << _NEW_BITS) - 1
_MOST_PIECES: Final = 512  # of a run; preadv takes 1024 (IOV_MAX)


class Run(NamedTuple):
    """Chunks that lie side by side on the COW device, from *new* on.

    *pieces* are the extents of the source they belong to, in the order of the COW device:
    one vectored read scatters the whole run.
    """

    new: Chunks
    pieces: tuple[Extent, ...]


class SnapshotMap:
    """The exceptions of one snapshot.

    *chunk_size* and *source*, the length of the source, are in sectors.
    """

    def __init__(self, chunk_size: Sectors, source: Sectors) -> None:
        self._chunk_size = chunk_size
        self._source = source
        self._chunks = chunks_for(source, chunk_size)
        size = max(_SMALLEST_BUCKET, -(-self._chunks // _MOST_BUCKETS))
        self._shift = (size - 1).bit_length()
        self._stride = exceptions_per_area(chunk_size) + 1
        self._buckets: dict[int, array[int]] = {}
        self._unsorted: set[int] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, old: Chunks, new: Chunks) -> None:
        """Add one exception."""
        self.update([CowException(old, new)])

    def update(self, exceptions: Exceptions | Iterable[CowException]) -> None:
        """Add exceptions; raises `StoreDamaged` for one that cannot be."""
        if isinstance(exceptions, Exceptions):
            pairs: Iterable[tuple[int, int]] = zip(exceptions.old, exceptions.new, strict=True)
        else:
            pairs = exceptions
        shift, mask, chunks, stride = (
            self._shift,
            (1 << self._shift) - 1,
            self._chunks,
            self._stride,
        )
        buckets, unsorted = self._buckets, self._unsorted
        added = 0
        for old, new in pairs:
            # chunk 0 is the header, and every stride-th from 1 on is an area
            if old >= chunks or new > _NEW_MASK or new < 2 or new % stride == 1:
                raise StoreDamaged(
                    f"the exception store says that chunk {old} of {chunks} is saved in chunk {new}"
                )
            number = old >> shift
            bucket = buckets.get(number)
            if bucket is None:
                bucket = buckets[number] = array("Q")
            bucket.append((old & mask) << _NEW_BITS | new)
            unsorted.add(number)
            added += 1
        self._count += added

    def runs(self, at: Extent) -> list[Run]:
        """Give what is saved of *at*, for reading it with as few reads as can be.

        *at* starts at a multiple of the chunk size.  The last chunk of the source may be
        incomplete; its piece is cut to what the source has.  Raises `StoreDamaged` when a
        chunk is saved twice.
        """
        if not self._count:
            return []
        saved = sorted((new, old) for old, new in self._saved(at))
        runs: list[Run] = []
        pieces: list[Extent] = []
        first = -1
        for position, (new, old) in enumerate(saved):
            piece = self._piece(old, at)
            # behind an incomplete piece the next chunk does not lie where its piece would go
            whole = bool(pieces) and pieces[-1].end == self._end(saved[position - 1][1])
            adjoins = whole and new == saved[position - 1][0] + 1
            if not adjoins or len(pieces) == _MOST_PIECES:
                if pieces:
                    runs.append(Run(Chunks(first), tuple(pieces)))
                pieces, first = [piece], new
            elif pieces[-1].end == piece.start:
                pieces[-1] = Extent.between(pieces[-1].start, piece.end)
            else:
                pieces.append(piece)
        if pieces:
            runs.append(Run(Chunks(first), tuple(pieces)))
        return runs

    def _saved(self, at: Extent) -> Iterator[tuple[int, int]]:
        first = chunk_of(at.start, self._chunk_size)
        end = chunks_for(at.end, self._chunk_size)
        shift = self._shift
        for number in range(first >> shift, ((end - 1) >> shift) + 1):
            bucket = self._sorted(number)
            if bucket is None:
                continue
            base = number << shift
            start = bisect_left(bucket, max(first - base, 0) << _NEW_BITS)
            stop = bisect_left(bucket, (end - base) << _NEW_BITS)
            for word in bucket[start:stop]:
                yield base + (word >> _NEW_BITS), word & _NEW_MASK

    def _sorted(self, number: int) -> array[int] | None:
        bucket = self._buckets.get(number)
        if bucket is None or number not in self._unsorted:
            return bucket
        words = sorted(bucket)
        if any((a ^ b) >> _NEW_BITS == 0 for a, b in pairwise(words)):
            raise StoreDamaged("the exception store has a chunk of the origin twice")
        bucket = self._buckets[number] = array("Q", words)
        self._unsorted.discard(number)
        return bucket

    def _end(self, old: int) -> int:
        return (old + 1) * self._chunk_size

    def _piece(self, old: int, at: Extent) -> Extent:
        start = chunk_start(Chunks(old), self._chunk_size)
        return Extent.between(start, Sectors(min(self._end(old), self._source, at.end)))
