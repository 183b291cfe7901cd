"""The list of segments to copy: which, and in which order.

A segment list is a rule, not a list of objects: its memory does not grow with the device.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from threading import Lock

from dmcopy.core.extent import Extent, merge
from dmcopy.units import Sectors, round_down, round_up


@dataclass(frozen=True)
class SegmentList:
    """All of a device of *length* sectors, in segments of *size*; the last may be shorter."""

    length: Sectors
    size: Sectors

    def __post_init__(self) -> None:
        if self.length < 0 or self.size <= 0:
            raise ValueError(f"{self.length} sectors in segments of {self.size}")

    def __len__(self) -> int:
        return (self.length + self.size - 1) // self.size

    def __getitem__(self, index: int) -> Extent:
        if not 0 <= index < len(self):
            raise IndexError(f"segment {index} of {len(self)}")
        start = Sectors(index * self.size)
        return Extent.between(start, min(Sectors(start + self.size), self.length))

    def __iter__(self) -> Iterator[Extent]:
        return (self[index] for index in range(len(self)))


class Rank(IntEnum):
    """For whom a part of the image goes first; the smaller, the more urgent."""

    HELD = 0  # for writes that wait
    ASKED = 1  # for the user
    HOT = 2  # for the application, as its writes are observed


class Remaining:
    """What is still to be copied: all segments but what is *done*, each handed out once.

    In the order of the image, but for what was asked for first (`prefer`, from any thread).
    A segment never reaches over a piece that is done; its memory is that of the gaps.
    """

    def __init__(self, segments: SegmentList, done: Iterable[Extent] = ()) -> None:
        self._size = segments.size
        whole = Extent(Sectors(0), segments.length)
        self._gaps = _without(segments.length, merge(filter(None, map(whole.clip, done))))
        self._first: dict[Rank, deque[Extent]] = {rank: deque() for rank in Rank}
        self._lock = Lock()

    def __bool__(self) -> bool:
        return bool(self._gaps)

    @property
    def length(self) -> Sectors:
        """How many sectors were not handed out yet."""
        with self._lock:
            return Sectors(sum(gap.length for gap in self._gaps))

    @property
    def left(self) -> list[Extent]:
        """What was not handed out yet, in the order of the image."""
        with self._lock:
            return list(self._gaps)

    def prefer(self, extents: Iterable[Extent], rank: Rank) -> None:
        """Hand out what is left of *extents*, whole segments of it, before what is less urgent.

        In place of what was preferred at that rank before.
        """
        with self._lock:
            self._first[rank] = deque(extents)

    def preferred(self, rank: Rank) -> list[Extent]:
        """Give what is left of what is preferred at a rank, in the order in which it comes."""
        with self._lock:
            wanted, gaps = list(self._first[rank]), list(self._gaps)
        return [part for one in wanted for gap in gaps if (part := gap.clip(one)) is not None]

    def take(self, *, rank: Rank | None = None) -> Extent | None:
        """Hand out the next segment, None when there is none left.

        With *rank* only of what is preferred at that rank, or before it.
        """
        with self._lock:
            for one, first in self._first.items():
                if rank is not None and one > rank:
                    return None
                while first:
                    found = self._take_of(first[0])
                    if found is not None:
                        return found
                    first.popleft()
            if rank is not None:
                return None
            return self._cut(0, self._gaps[0].start) if self._gaps else None

    def _take_of(self, wanted: Extent) -> Extent | None:
        """Take the first segment that touches *wanted* and is left."""
        start = round_down(wanted.start, self._size)
        end = round_up(wanted.end, self._size)
        index = max(bisect_right(self._gaps, start, key=attrgetter("start")) - 1, 0)
        while index < len(self._gaps) and self._gaps[index].start < end:
            if self._gaps[index].end > start:
                return self._cut(index, max(start, self._gaps[index].start))
            index += 1
        return None

    def _cut(self, index: int, start: Sectors) -> Extent:
        """Take the segment at *start* out of a gap."""
        gap = self._gaps[index]
        end = min(Sectors(round_down(start, self._size) + self._size), gap.end)
        rest = [(gap.start, start), (end, gap.end)]
        self._gaps[index : index + 1] = [
            Extent.between(*pair) for pair in rest if pair[0] < pair[1]
        ]
        return Extent.between(start, end)


def _without(length: Sectors, done: Iterable[Extent]) -> list[Extent]:
    """Give what is left of *length* sectors; *done* is sorted and disjoint."""
    gaps = []
    start = Sectors(0)
    for extent in done:
        if start < extent.start:
            gaps.append(Extent.between(start, extent.start))
        start = extent.end
    if start < length:
        gaps.append(Extent.between(start, length))
    return gaps
