"""How large chunks, segments and COW devices are, and what fits what.

Kernel: drivers/md/dm-exception-store.c:dm_exception_store_set_chunk_size,
drivers/md/dm-snap-persistent.c.
"""

from __future__ import annotations

import math
from typing import Final

from dmcopy.errors import UsageError
from dmcopy.units import (
    KIB,
    MIB,
    SECTOR_SIZE,
    Bytes,
    Sectors,
    chunks_for,
    format_size,
    is_power_of_two,
    round_up,
    to_bytes,
    to_sectors,
)

SMALLEST_CHUNK: Final = Bytes(4 * KIB)
LARGEST_CHUNK: Final = Bytes(1 * MIB)
LARGEST_SEGMENT: Final = Bytes(64 * MIB)  # several buffers of this size are locked in memory
_LARGEST_FOR_STRIPES: Final = Bytes(16 * MIB)  # a segment that was not asked for so large
ENTRY_SIZE: Final = 16  # bytes of one exception in an area


def check_chunk(chunk: Bytes, *blocks: Bytes) -> Sectors:
    """Give a chunk size in sectors; *blocks* are the logical blocks of the devices.

    Raises `UsageError` unless it is a power of two, a multiple of every block, and sensible.
    """
    if not is_power_of_two(chunk) or not SMALLEST_CHUNK <= chunk <= LARGEST_CHUNK:
        raise UsageError(
            f"a chunk of {format_size(chunk)} cannot be: it must be a power of two from "
            f"{format_size(SMALLEST_CHUNK)} to {format_size(LARGEST_CHUNK)}"
        )
    for block in blocks:
        if chunk % block:
            raise UsageError(
                f"a chunk of {format_size(chunk)} is no multiple of the device's block of "
                f"{format_size(block)}"
            )
    return to_sectors(chunk)


def segment_size(wanted: Bytes, chunk: Sectors, alignment: Bytes = SECTOR_SIZE) -> Sectors:
    """Give the size of segments: *wanted*, rounded up to whole chunks and to *alignment*.

    Raises `UsageError` for one that is nothing or would need too much memory.
    """
    if wanted <= 0:
        raise UsageError("a segment must be larger than nothing")
    unit = Sectors(math.lcm(chunk, to_sectors(alignment)))
    size = round_up(Sectors(-(-wanted // SECTOR_SIZE)), unit)
    if to_bytes(size) > LARGEST_SEGMENT:
        raise UsageError(
            f"a segment of {format_size(to_bytes(size))} is too large: at most "
            f"{format_size(LARGEST_SEGMENT)}"
        )
    return size


def stripe_aligned(wanted: Bytes, chunk: Sectors, alignment: Bytes, stripe: Bytes) -> bool:
    """Tell whether segments may be made of whole *stripe*s of a RAID array as well.

    They may not where that would make them much larger than *wanted*: a stripe that is no power
    of two can have a common multiple with a chunk, or with the destination's unit, that is huge.
    """
    if not stripe or stripe % SECTOR_SIZE:
        return False
    unit = math.lcm(to_bytes(chunk), alignment, stripe)
    return -(-wanted // unit) * unit <= max(wanted, _LARGEST_FOR_STRIPES)


def exceptions_per_area(chunk: Sectors) -> int:
    """Count the exceptions that one area, which is one chunk, can hold."""
    return to_bytes(chunk) // ENTRY_SIZE


def never_overflow(source: Sectors, chunk: Sectors) -> Sectors:
    """Give the size of a COW device that is enough even if all of *source* is overwritten.

    The header, every chunk once, an area for each `exceptions_per_area` of them, and one
    more, for the kernel zeroes the next area before it needs it (write_exception).
    """
    chunks = chunks_for(source, chunk)
    areas = -(-chunks // exceptions_per_area(chunk)) + 1
    return Sectors((1 + chunks + areas) * chunk)
