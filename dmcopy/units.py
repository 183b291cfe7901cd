"""Quantities of storage as distinct types, and the only conversions between them.

A bare ``int`` is a count, an index or a file descriptor; anything measured is one of
`Sectors`, `Bytes` or `Chunks`.  A sector is 512 bytes whatever the device says
(Linux: include/linux/blk_types.h, ``SECTOR_SHIFT``).
"""

import re
from typing import Final, NewType

Sectors = NewType("Sectors", int)  # 512-byte units, as in a dm table
Bytes = NewType("Bytes", int)  # byte offsets and lengths
Chunks = NewType("Chunks", int)  # snapshot chunks; their size is per exception store

SECTOR_SIZE: Final = Bytes(512)

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[kmgtpe]?)(?:i?b)?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}


def to_bytes(n: Sectors) -> Bytes:
    """Convert sectors to bytes; always exact."""
    return Bytes(n * SECTOR_SIZE)


def to_sectors(n: Bytes) -> Sectors:
    """Convert exactly; raises ValueError when *n* is not a multiple of 512."""
    if n % SECTOR_SIZE:
        raise ValueError(f"{n} bytes is not a multiple of {SECTOR_SIZE}")
    return Sectors(n // SECTOR_SIZE)


def sectors_down(n: Bytes) -> Sectors:
    """Convert to whole sectors, dropping a last incomplete one."""
    return Sectors(n // SECTOR_SIZE)


def sectors_up(n: Bytes) -> Sectors:
    """Count the sectors that *n* bytes touch."""
    return Sectors(-(-n // SECTOR_SIZE))


def chunk_of(sector: Sectors, chunk_size: Sectors) -> Chunks:
    """Give the chunk that holds *sector* (rounds down)."""
    return Chunks(sector // chunk_size)


def chunk_start(chunk: Chunks, chunk_size: Sectors) -> Sectors:
    """Give the first sector of *chunk*."""
    return Sectors(chunk * chunk_size)


def chunks_for(length: Sectors, chunk_size: Sectors) -> Chunks:
    """Count the chunks that *length* sectors from 0 touch (rounds up)."""
    return Chunks(-(-length // chunk_size))


def round_down(n: Sectors, to: Sectors) -> Sectors:
    """Give the largest multiple of *to* that is not above *n*."""
    return Sectors(n - n % to)


def round_up(n: Sectors, to: Sectors) -> Sectors:
    """Give the smallest multiple of *to* that is not below *n*."""
    return Sectors(-(-n // to) * to)


def is_power_of_two(n: int) -> bool:
    """Tell whether *n* is 1, 2, 4, 8 ..."""
    return n > 0 and n & (n - 1) == 0


def parse_size(text: str) -> Bytes:
    """Parse a size that a person wrote: ``64MiB``, ``1g``, ``4096``; binary units.

    Raises ValueError for anything else, and when the value is not whole bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size; write it like 64MiB, 1g or 4096")
    whole, _, part = match["number"].partition(".")
    scale = 1 << (10 * _POWER[match["unit"].lower()])
    numerator, denominator = int(whole + part) * scale, 10 ** len(part)
    if numerator % denominator:
        raise ValueError(f"'{text}' is not a whole number of bytes")
    return Bytes(numerator // denominator)


def format_size(n: int) -> str:
    """Write a number of bytes for a person, in binary units: ``1.5 GiB``."""
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def exact_size(n: int) -> str:
    """Write a number of bytes so that `parse_size` gives it again: ``1536MiB``, ``513``."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if n and n % (1 << 10 * power) == 0:
            return f"{n >> 10 * power}{unit}"
    return str(n)
