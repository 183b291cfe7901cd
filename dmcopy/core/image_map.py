"""Where each part of an image is: copied, retired, saved in the snapshot, being copied, held.

Extents are of the source, sorted and disjoint, in sectors.  Pure: who asks the kernel is elsewhere
(`jobs.look`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from dmcopy.core.extent import Extent
from dmcopy.units import Sectors, to_bytes


class Waiting(NamedTuple):
    """Writes that wait, in the order in which they came."""

    why: str  # gate | brake | saving: until a segment is done | a time is over | a chunk is saved
    writes: int
    extents: tuple[Extent, ...] = ()  # where; of whole areas, empty where it is not known
    seconds: float | None = None  # how long the longest has waited, at most
    most_seconds: float | None = None  # after this each of them goes on
    mean_seconds: float | None = None  # what writes of late have taken


class Kind(StrEnum):
    """What matters most about a part of the image."""

    HELD = "held"
    COPYING = "copying"
    RETIRED = "retired"
    COPIED = "copied"
    PARTLY = "partly copied"
    SAVED = "saved"
    SOURCE = "source"


@dataclass(frozen=True, kw_only=True)
class ImageMap:
    """The map of one job's image."""

    job: str
    length: Sectors
    chunk: Sectors | None  # None where there is no snapshot
    copied: Sequence[Extent] = ()  # durable at the destination, and on record
    retired: Sequence[Extent] = ()  # of it: writes pass, and are not saved
    saved: Sequence[Extent] = ()  # old content is in the snapshot
    copying: Sequence[Extent] = ()  # on its way to the destination
    gated: Sequence[Extent] = ()  # writes to it wait
    waiting: Sequence[Waiting] = ()

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy show --map --json`` prints."""
        return {
            "event": "map",
            "job": self.job,
            "length_bytes": to_bytes(self.length),
            "chunk_bytes": to_bytes(self.chunk) if self.chunk is not None else None,
            "copied": _pairs(self.copied),
            "retired": _pairs(self.retired),
            "saved": _pairs(self.saved),
            "copying": _pairs(self.copying),
            "gated": _pairs(self.gated),
            "waiting": [{**one._asdict(), "extents": _pairs(one.extents)} for one in self.waiting],
        }

    def cells(self, most: int) -> tuple[Sectors, list[Kind]]:
        """Cut the image into at most *most* cells; give their size, and what each is."""
        size = Sectors(max(-(-self.length // most), 1))
        count = -(-self.length // size)
        copied, retired, saved = (
            _filled(extents, size, count) for extents in (self.copied, self.retired, self.saved)
        )
        held = _filled(
            [*self.gated, *(e for one in self.waiting for e in one.extents)], size, count
        )
        copying = _filled(self.copying, size, count)

        def kind(index: int) -> Kind:
            whole = min(size, self.length - index * size)
            if held[index]:
                return Kind.HELD
            if copying[index]:
                return Kind.COPYING
            if retired[index] >= whole:
                return Kind.RETIRED
            if copied[index] >= whole:
                return Kind.COPIED
            if copied[index]:
                return Kind.PARTLY
            return Kind.SAVED if saved[index] else Kind.SOURCE

        return size, [kind(index) for index in range(count)]


def _pairs(extents: Iterable[Extent]) -> list[list[int]]:
    return [[extent.offset, extent.size] for extent in extents]


def _filled(extents: Iterable[Extent], size: Sectors, count: int) -> list[int]:
    """Give how many sectors of each cell are in *extents*."""
    found = [0] * count
    for extent in extents:
        at = extent.start
        while at < extent.end:
            index = at // size
            end = min(extent.end, (index + 1) * size)
            if index < count:
                found[index] += end - at
            at = Sectors(end)
    return found
