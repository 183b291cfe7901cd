"""dm-stats: counters of a dm device, kept by the kernel for each area of it.

What is asked and answered by message: ``@stats_create``, ``@stats_print`` and the others.  A
region belongs to the mapped device, not to its table, and goes with it.  Pure: whoever sends the
message is elsewhere (`kernel.dm.Dm.message`).

I/O counts as in progress from when a target passes it on (dm.c:dm_submit_bio_remap): what
``delay`` holds on the *same* device is not counted, what it holds on a device below is.

Kernel: Documentation/admin-guide/device-mapper/statistics.rst, drivers/md/dm-stats.c.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from dmcopy.core.extent import Extent
from dmcopy.units import Sectors

MOST_AREAS: Final = 4096  # an area costs about 100 bytes a CPU, and a line in each answer

_LINE: Final = re.compile(r"(\d+)\+(\d+)((?: \d+){13})")
_WRITES: Final = 4  # fields, from 0: completed writes, I/O in progress
_IN_PROGRESS: Final = 8


class Area(NamedTuple):
    """The counters of one area that are of use here."""

    extent: Extent
    writes: int  # completed since the region was made
    in_progress: int  # I/O now: reads too, and what a target below holds


def area_size(length: Sectors, segment: Sectors, most: int = MOST_AREAS) -> Sectors:
    """Give the smallest multiple of *segment* that makes at most *most* areas of *length*."""
    segments = -(-length // segment)
    return Sectors(segment * max(1, -(-segments // most)))


def create_message(area: Sectors, program: str) -> str:
    """Ask for counters of the whole device, by areas of *area*; the answer is for `region`."""
    return f"@stats_create - {area} {program}"


def region(answer: str) -> int:
    """Read the answer to `create_message`; raises ValueError for what it is not."""
    return int(answer)


def print_message(number: int) -> str:
    """Ask for all counters of region *number*; the answer is for `areas`."""
    return f"@stats_print {number}"


def take_message(number: int) -> str:
    """Ask for all counters of region *number*, and set them to zero; answer as before."""
    return f"@stats_print_clear {number}"


def list_message(program: str) -> str:
    """Ask for the regions that *program* made; the answer is for `regions`."""
    return f"@stats_list {program}"


def regions(answer: str) -> list[int]:
    """Read the answer to `list_message`: ``NUMBER: START+LENGTH STEP PROGRAM AUX`` a line."""
    return [int(line.partition(":")[0]) for line in answer.splitlines()]


def delete_message(number: int) -> str:
    """Have region *number* counted no more."""
    return f"@stats_delete {number}"


def areas(answer: str) -> list[Area]:
    """Read the answer to `print_message`; raises ValueError for what it is not."""
    return [_area(line) for line in answer.splitlines()]


def _area(line: str) -> Area:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"'{line}' is not a line of @stats_print")
    counts = [int(word) for word in match[3].split()]
    extent = Extent(Sectors(int(match[1])), Sectors(int(match[2])))
    return Area(extent, counts[_WRITES], counts[_IN_PROGRESS])
