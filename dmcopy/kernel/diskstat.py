"""What the kernel counts of a block device's writes: /sys/dev/block/M:m/stat.

Document: Documentation/block/stat.rst.  Counted for each device of a stack by itself: for an
origin, what was written to it by its users, with the time that a copy-on-write held it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dmcopy.units import Sectors

_WRITES: Final = 4  # columns: completed writes, sectors written, milliseconds writing
_SECTORS: Final = 6
_MILLISECONDS: Final = 7
_DISCARDS: Final = 11  # completed discards, since v4.18


class IoTimes(NamedTuple):
    """What a device has written since it appeared."""

    writes: int  # completed, after merges
    sectors: Sectors
    milliseconds: int  # summed over the writes; an unsigned int, so it wraps round
    discards: int = 0  # completed

    @classmethod
    def parse(cls, text: str) -> IoTimes:
        """Read the one line of ``stat``."""
        columns = [int(word) for word in text.split()]
        return cls(
            columns[_WRITES],
            Sectors(columns[_SECTORS]),
            columns[_MILLISECONDS],
            columns[_DISCARDS] if len(columns) > _DISCARDS else 0,
        )

    def since(self, before: IoTimes) -> IoTimes:
        """Give what was added since *before*."""
        return IoTimes(
            self.writes - before.writes,
            Sectors(self.sectors - before.sectors),
            (self.milliseconds - before.milliseconds) % (1 << 32),
            self.discards - before.discards,
        )
