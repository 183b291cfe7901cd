"""striped: RAID 0.

Kernel: Documentation/admin-guide/device-mapper/striped.rst, drivers/md/dm-stripe.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.core.target import Target, expect, number
from dmcopy.units import Sectors


@dataclass(frozen=True)
class Striped(Target):
    """Chunks of *chunk_size* sectors in turn on each of *stripes* (device, offset)."""

    KIND: ClassVar[str] = "striped"
    chunk_size: Sectors
    stripes: tuple[tuple[str, Sectors], ...]

    def args(self) -> list[str]:
        pairs = [word for device, offset in self.stripes for word in (device, str(offset))]
        return [str(len(self.stripes)), str(self.chunk_size), *pairs]

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        if not args:
            raise ValueError("striped needs arguments")
        expect(args, 2 + 2 * number(args[0]))
        pairs = zip(args[2::2], args[3::2], strict=True)
        stripes = tuple((device, Sectors(number(offset))) for device, offset in pairs)
        return cls(length, Sectors(number(args[1])), stripes)

    def devices(self) -> tuple[str, ...]:
        return tuple(device for device, _ in self.stripes)
