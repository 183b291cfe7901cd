"""snapshot-origin and snapshot: the two halves of a point in time.

Kernel: Documentation/admin-guide/device-mapper/snapshot.rst, drivers/md/dm-snap.c.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Self

from dmcopy.core.target import Target, expect, number
from dmcopy.units import Sectors

_USAGE: Final = re.compile(r"(\d+)/(\d+) (\d+)")


@dataclass(frozen=True)
class SnapshotOrigin(Target):
    """Writes to *device* save what they overwrite, in every snapshot of it."""

    KIND: ClassVar[str] = "snapshot-origin"
    device: str

    def args(self) -> list[str]:
        return [self.device]

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        expect(args, 1)
        return cls(length, args[0])

    def devices(self) -> tuple[str, ...]:
        return (self.device,)


@dataclass(frozen=True)
class Snapshot(Target):
    """*origin* as it was; *chunk_size* in sectors; *mode* P, PO (persistent) or N (not)."""

    KIND: ClassVar[str] = "snapshot"
    origin: str
    cow: str
    chunk_size: Sectors
    mode: str = "P"

    def args(self) -> list[str]:
        return [self.origin, self.cow, self.mode, str(self.chunk_size)]

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        expect(args, 4)
        if args[2] not in ("P", "PO", "N"):
            raise ValueError(f"'{args[2]}' is not P, PO or N")
        return cls(length, args[0], args[1], Sectors(number(args[3])), args[2])

    def devices(self) -> tuple[str, ...]:
        return (self.origin, self.cow)


class SnapshotStatus(NamedTuple):
    """What a snapshot says of itself; the figures are 0 when *state* is not ``ok``.

    *used* counts header and areas (*metadata*) too; *total* is the COW device.
    """

    used: Sectors
    total: Sectors
    metadata: Sectors
    state: str = "ok"  # or the kernel's words: Invalid, Overflow, Merge failed, Unknown

    @property
    def is_valid(self) -> bool:
        """Tell whether the point in time still exists."""
        return self.state == "ok"

    @classmethod
    def parse(cls, text: str) -> SnapshotStatus:
        """Read the target's status; what is not a usage is a state, whatever it says."""
        match = _USAGE.fullmatch(text.strip())
        if match is None:
            said = text.strip() or "empty"
            # "ok" is our word: the kernel's must never pass for it
            return cls(Sectors(0), Sectors(0), Sectors(0), "'ok'" if said == "ok" else said)
        used, total, metadata = (Sectors(int(word)) for word in match.groups())
        return cls(used, total, metadata)
