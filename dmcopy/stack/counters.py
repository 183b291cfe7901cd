"""Counts the writes to an origin, by areas: what is hot.

The kernel counts (dm-stats), on the device that the application has open, from before the begin
time on.  The counters belong to the mapped device, so they stay when its table is swapped; they
are ours to take away, also for a job that died: `forget_counters`.
"""

from __future__ import annotations

import logging
from typing import Final

from dmcopy.core import dmstats
from dmcopy.errors import DmFailed
from dmcopy.kernel.dm import Dm
from dmcopy.units import Sectors

log = logging.getLogger(__name__)

_MOST_AREAS: Final = 1024  # read twice a second, and sorted by the worker


def counter_area(length: Sectors, segment: Sectors) -> Sectors:
    """Give the size of the areas that writes are counted by, a multiple of *segment*."""
    return dmstats.area_size(length, segment, _MOST_AREAS)


class WriteCounter:
    """The counters of one job; `end` in every case."""

    def __init__(self, dm: Dm, *, job: str, origin: str, area: Sectors) -> None:
        """*origin* is a dm name, *area* a size in sectors (`counter_area`)."""
        self._dm = dm
        self._job = job
        self._origin = origin
        self._area = area
        self._region: int | None = None

    def start(self) -> None:
        """Begin to count; raises `DmFailed` where the kernel does not."""
        forget_counters(self._dm, self._origin, self._job)
        message = dmstats.create_message(self._area, _program(self._job))
        self._region = dmstats.region(self._dm.message(self._origin, 0, message))

    def take(self) -> list[tuple[int, int]]:
        """Give the number of each area that was written since the last time, and how often."""
        if self._region is None:
            return []
        answer = self._dm.message(self._origin, 0, dmstats.take_message(self._region))
        return [
            (area.extent.start // self._area, area.writes)
            for area in dmstats.areas(answer)
            if area.writes
        ]

    def end(self) -> None:
        """Count no more; twice is fine."""
        if self._region is not None:
            self._region = None
            forget_counters(self._dm, self._origin, self._job)


def forget_counters(dm: Dm, origin: str, job: str) -> None:
    """Take away the counters that *job* has on *origin*, if it has any and the device is there."""
    try:
        for region in dmstats.regions(dm.message(origin, 0, dmstats.list_message(_program(job)))):
            dm.message(origin, 0, dmstats.delete_message(region))
    except (DmFailed, ValueError) as exc:  # they cost a few cycles a write, and no more
        log.debug("the counters of %s could not be taken away: %s", origin, exc)


def _program(job: str) -> str:
    return f"dmcopy-{job}"
