"""Ranges of sectors on one device, and the arithmetic that everything else relies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dmcopy.units import Bytes, Sectors, round_down, to_bytes


class Extent(NamedTuple):
    """``[start, start + length)`` on one device, in sectors; length > 0."""

    start: Sectors
    length: Sectors

    @property
    def end(self) -> Sectors:
        """The first sector behind the extent."""
        return Sectors(self.start + self.length)

    @property
    def offset(self) -> Bytes:
        """Where the extent starts, in bytes."""
        return to_bytes(self.start)

    @property
    def size(self) -> Bytes:
        """How long the extent is, in bytes."""
        return to_bytes(self.length)

    @classmethod
    def between(cls, start: Sectors, end: Sectors) -> Extent:
        """Make the extent ``[start, end)``; raises ValueError unless start < end."""
        if start >= end:
            raise ValueError(f"no sectors between {start} and {end}")
        return cls(start, Sectors(end - start))

    def clip(self, to: Extent) -> Extent | None:
        """Give the part that lies in *to*, or None."""
        start = max(self.start, to.start)
        end = min(self.end, to.end)
        return Extent(start, Sectors(end - start)) if start < end else None

    def split(self, size: Sectors, *, align: Sectors) -> Iterator[Extent]:
        """Cut at multiples of *align*, into pieces of at most *size* sectors.

        *size* is a multiple of *align*; every piece but the first and the last starts
        and ends on a multiple of *align*.
        """
        if align <= 0 or size < align or size % align:
            raise ValueError(f"size {size} is not a multiple of the alignment {align}")
        start = self.start
        while start < self.end:
            end = min(Sectors(round_down(start, align) + size), self.end)
            yield Extent(start, Sectors(end - start))
            start = end


def merge(extents: Iterable[Extent]) -> list[Extent]:
    """Sort, and join what touches or overlaps.  Does not change its argument."""
    merged: list[Extent] = []
    for extent in sorted(extents):
        if merged and extent.start <= merged[-1].end:
            last = merged[-1]
            merged[-1] = Extent(last.start, Sectors(max(last.end, extent.end) - last.start))
        else:
            merged.append(extent)
    return merged
