"""How large the disks are, and where on one disk they are; both sides know."""

from __future__ import annotations

from typing import Final

SIZE: Final = 16 << 20  # bytes of source and destination
STATE_SIZE: Final = 96 << 20  # of the disk with journal and COW file

_FIRST: Final = 1 << 20  # bytes; before it is the partition table
# Slices of one disk: where each begins, and its length; they are its partitions, in this order.
SLICES: Final = {
    "source": (_FIRST, SIZE),
    "target": (_FIRST + SIZE, SIZE),
    "state": (_FIRST + 2 * SIZE, STATE_SIZE),
}
WHOLE: Final = _FIRST + 2 * SIZE + STATE_SIZE


def partition_table() -> bytes:
    """Give the first sector of that disk: a DOS partition table."""
    sector = bytearray(512)
    for number, (start, length) in enumerate(SLICES.values()):
        at = 446 + 16 * number
        sector[at + 4] = 0x83
        sector[at + 8 : at + 12] = (start >> 9).to_bytes(4, "little")
        sector[at + 12 : at + 16] = (length >> 9).to_bytes(4, "little")
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)
