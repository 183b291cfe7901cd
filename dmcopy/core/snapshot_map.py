"""Which chunks of the source are saved in the snapshot, and where on the COW device.

Compact: 8 bytes an exception, and some for each bucket, of which there are at most 16,384.
A bucket is an array of 64-bit words, old chunk (within the bucket) above new chunk, so that
sorting the words sorts by old chunk; it is sorted when it is looked at.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dmcopy.core.exception_store import CowException, Exceptions, StoreDamaged
from dmcopy.core.extent import Extent
from dmcopy.core.geometry import exceptions_per_area
from dmcopy.units import Chunks, Sectors, chunk_of, chunks_for

_SMALLEST_BUCKET: Final = 4096  # chunks
_MOST_BUCKETS: Final = 16384
_WORD_BITS: Final = 64
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
        self._shift = min((size - 1).bit_length(), _WORD_BITS - _NEW_BITS)
        self._stride = exceptions_per_area(chunk_size) + 1
        self._buckets: defaultdict[int, array[int]] = defaultdict(_bucket)
        self._in_order: dict[int, int] = {}  # how long a bucket was when it was sorted
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, old: Chunks, new: Chunks) -> None:
        """Add one exception."""
        self.update([CowException(old, new)])

    def update(
        self, exceptions: Exceptions | Iterable[CowException], *, cow: Sectors | None = None
    ) -> None:
        """Add exceptions: all of them, or none and raise `StoreDamaged` for one that cannot be.

        *cow* is the length of the COW device, asked for after the exceptions were read, for
        it may grow; without it, any chunk of the COW device is believed.
        """
        olds: Sequence[int]
        news: Sequence[int]
        if isinstance(exceptions, Exceptions):
            olds, news = exceptions.old, exceptions.new
        else:
            pairs = list(exceptions)
            olds, news = [old for old, _ in pairs], [new for _, new in pairs]
        if not olds:
            return
        self._check(olds, news, _NEW_MASK + 1 if cow is None else cow // self._chunk_size)
        shift, mask, buckets = self._shift, (1 << self._shift) - 1, self._buckets
        first = min(olds) >> shift
        if first == max(olds) >> shift:
            buckets[first].fromlist(
                [(old & mask) << _NEW_BITS | new for old, new in zip(olds, news, strict=True)]
            )
        else:
            for old, new in zip(olds, news, strict=True):
                buckets[old >> shift].append((old & mask) << _NEW_BITS | new)
        self._count += len(olds)

    def runs(self, at: Extent) -> list[Run]:
        """Give what is saved of *at*, for reading it with as few reads as can be.

        *at* starts at a multiple of the chunk size (ValueError if not); where it or the source
        ends within a chunk, the piece is cut there and ends its run.  Raises `StoreDamaged`
        when a chunk was saved twice, or two were saved in one.
        """
        if at.start % self._chunk_size:
            raise ValueError(f"{at} does not start at a chunk of {self._chunk_size} sectors")
        first = chunk_of(at.start, self._chunk_size)
        end = min(chunks_for(at.end, self._chunk_size), self._chunks)
        if not self._count or first >= end:
            return []
        # integers, not tuples: new above old within *at*, so that they sort by new
        bits = (end - first).bit_length()
        saved = self._saved(first, end, bits)
        saved.sort()
        return self._joined(saved, bits, at)

    def extents(self) -> list[Extent]:
        """Give all that is saved, as extents of the source: sorted, and joined where they touch."""
        found: list[Extent] = []
        start = end = 0  # chunks
        for number in sorted(self._buckets):
            base = number << self._shift
            for word in self._sorted(number) or ():
                chunk = base + (word >> _NEW_BITS)
                if chunk != end and end:
                    found.append(self._extent(start, end))
                if chunk != end or not end:
                    start = chunk
                end = chunk + 1
        return [*found, self._extent(start, end)] if end else found

    def _extent(self, start: int, end: int) -> Extent:
        first = Sectors(start * self._chunk_size)
        return Extent.between(first, Sectors(min(end * self._chunk_size, self._source)))

    def _check(self, olds: Sequence[int], news: Sequence[int], cow: int) -> None:
        """Raise `StoreDamaged` for an exception that the kernel cannot have made.

        Chunk 0 of the COW device is the header, and every stride-th from 1 on is an area.
        """
        lowest, highest = min(news), max(news)
        limit = min(cow, _NEW_MASK + 1)
        areas = range(lowest - (lowest - 1) % self._stride, highest + 1, self._stride)
        if max(olds) < self._chunks and lowest > 1 and highest < limit:
            if len(areas) > len(news):  # as good as never: the kernel fills chunks in order
                if not any(new % self._stride == 1 for new in news):
                    return
            elif set(areas).isdisjoint(news):
                return
        for old, new in zip(olds, news, strict=True):
            if old >= self._chunks:
                why = f"the source has {self._chunks} chunks"
            elif new >= limit:
                why = f"the COW device has {limit} chunks"
            elif new == 0 or new % self._stride == 1:
                why = "that is no data chunk but of the store itself"
            else:
                continue
            raise StoreDamaged(
                f"the exception store says that chunk {old} is saved in chunk {new}, but {why}"
            )

    def _saved(self, first: Chunks, end: Chunks, bits: int) -> list[int]:
        """Give the exceptions of the chunks from *first* to before *end*."""
        saved: list[int] = []
        shift = self._shift
        for number in range(first >> shift, ((end - 1) >> shift) + 1):
            bucket = self._sorted(number)
            if bucket is None:
                continue
            base = number << shift
            start = bisect_left(bucket, max(first - base, 0) << _NEW_BITS)
            # not by the first word behind *end*: at the end of a bucket it may have 65 bits
            stop = bisect_right(bucket, (end - base - 1) << _NEW_BITS | _NEW_MASK, start)
            words = bucket[start:stop]
            # every chunk is in one segment, so what is saved twice is found before it is used
            if len({word >> _NEW_BITS for word in words}) != len(words):
                raise StoreDamaged("the exception store has a chunk of the source twice")
            offset = base - first
            saved += [(word & _NEW_MASK) << bits | ((word >> _NEW_BITS) + offset) for word in words]
        return saved

    def _sorted(self, number: int) -> array[int] | None:
        bucket = self._buckets.get(number)
        if bucket is not None and self._in_order.get(number) != len(bucket):
            bucket = self._buckets[number] = array("Q", sorted(bucket))
            self._in_order[number] = len(bucket)
        return bucket

    def _joined(self, saved: list[int], bits: int, at: Extent) -> list[Run]:
        """Join what adjoins on the COW device to runs, and on the source too to pieces."""
        size, mask = self._chunk_size, (1 << bits) - 1
        end = min(at.end, self._source)
        runs: list[Run] = []
        pieces: list[Extent] = []
        run_start = last_new = -1
        piece_start = piece_end = 0  # chunks, within *at*
        for word in saved:
            new, old = word >> bits, word & mask
            if new == last_new + 1 and old == piece_end:
                piece_end += 1
            else:
                if new == last_new:
                    raise StoreDamaged(f"the exception store has two chunks saved in chunk {new}")
                ends_run = new != last_new + 1 or len(pieces) + 1 == _MOST_PIECES
                if last_new >= 0:
                    piece = _piece(at.start, piece_start, piece_end, size, end)
                    pieces.append(piece)
                    # behind an incomplete chunk of the source, the COW device has a gap
                    ends_run = ends_run or piece.length % size != 0
                if ends_run:
                    if pieces:
                        runs.append(Run(Chunks(run_start), tuple(pieces)))
                    pieces, run_start = [], new
                piece_start, piece_end = old, old + 1
            last_new = new
        if last_new >= 0:
            pieces.append(_piece(at.start, piece_start, piece_end, size, end))
            runs.append(Run(Chunks(run_start), tuple(pieces)))
        return runs


def _bucket() -> array[int]:
    return array("Q")


def _piece(base: Sectors, start: int, end: int, size: Sectors, limit: Sectors) -> Extent:
    """Give the chunks from *start* to before *end*, counted from *base*, cut at *limit*."""
    first = base + start * size
    return Extent(Sectors(first), Sectors(min(base + end * size, limit) - first))
