"""The list of segments to copy: which, and in which order.

A segment list is a rule, not a list of objects: its memory does not grow with the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dmcopy.core.extent import Extent
from dmcopy.units import Sectors


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
