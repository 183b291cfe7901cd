"""In which order segments are copied: what is hot before the rest.

The order decides how much the snapshot must save.  What is copied and retired is saved no more,
so whatever is written the most should be copied first; and only that, for what is read in the
order of the image is read fast, and a table of a few lines can name it when it is retired.

Two policies, one rule.  *hot* goes by the writes to each area (dm-stats of the origin), *cow* by
the exceptions that each area adds to the store.  Whatever stands out goes first, as a few
clusters, each in the order of the image; where nothing stands out the order is that of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from dmcopy.core.extent import Extent, merge
from dmcopy.units import Sectors, round_down, round_up

_HALF_LIFE: Final = 60.0  # seconds after which a write counts half: loads move on
_TIMES_MEAN: Final = 2.0  # so much more than the others an area is written that goes first ...
_SIGMAS: Final = 3.0  # ... and so much more than chance would have it
_MOST_CLUSTERS: Final = 7  # as many ranges as can be retired apart (stack.gate.MOST_LINES)
_GAP_SHARE: Final = 128  # of the image: what is closer together than that is one cluster


class Policy(StrEnum):
    """What decides the order, but for what the user wants first."""

    SEQUENTIAL = "sequential"
    HOT = "hot"
    COW = "cow"


POLICIES: Final = tuple(policy.value for policy in Policy)  # as the user writes them


class Heat:
    """How much happens in each area of an image, of late."""

    def __init__(self, length: Sectors, area: Sectors) -> None:
        """*length* of the image, in areas of *area* sectors, which is a multiple of segments."""
        self._length = length
        self._area = area
        self._heat: dict[int, float] = {}
        self._at: float | None = None

    def add(self, now: float, counts: Mapping[int, float]) -> None:
        """Note what has happened up to *now*, in seconds of any clock: area, and how often."""
        if self._at is not None and now > self._at:
            factor = 0.5 ** ((now - self._at) / _HALF_LIFE)
            self._heat = {area: heat * factor for area, heat in self._heat.items() if heat > 0.01}
        self._at = now
        for area, count in counts.items():
            self._heat[area] = self._heat.get(area, 0.0) + count

    def clusters(self, left: Iterable[Extent]) -> list[Extent]:
        """Give what is to be copied first, of what is *left* (sorted, disjoint): hottest first.

        Empty where no area stands out.
        """
        areas = _areas(left, self._area)
        if not areas:
            return []
        mean = sum(self._heat.get(area, 0.0) for area in areas) / len(areas)
        least = _TIMES_MEAN * mean + _SIGMAS * math.sqrt(mean)
        hot = [area for area in areas if self._heat.get(area, 0.0) > least]
        clusters = self._joined(hot)
        clusters.sort(key=self._density, reverse=True)
        return clusters[:_MOST_CLUSTERS]

    def _joined(self, areas: Iterable[int]) -> list[Extent]:
        """Join areas that are close together; what lies between is copied along."""
        gap = round_up(Sectors(self._length // _GAP_SHARE), self._area)
        grown = merge(
            Extent(Sectors(area * self._area), Sectors(self._area + gap)) for area in areas
        )
        return [
            Extent.between(one.start, Sectors(min(one.end - gap, self._length))) for one in grown
        ]

    def _density(self, extent: Extent) -> float:
        first = extent.start // self._area
        end = -(-extent.end // self._area)
        return sum(self._heat.get(area, 0.0) for area in range(first, end)) / extent.length


def _areas(left: Iterable[Extent], size: Sectors) -> list[int]:
    """Give the areas that *left* touches, in order."""
    found: list[int] = []
    for extent in left:
        first = round_down(extent.start, size) // size
        end = -(-extent.end // size)
        if found and found[-1] >= first:
            first = found[-1] + 1
        found.extend(range(first, end))
    return found
