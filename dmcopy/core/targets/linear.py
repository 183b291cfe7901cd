"""linear: a range of one device.

Kernel: Documentation/admin-guide/device-mapper/linear.rst, drivers/md/dm-linear.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.core.target import Target, expect, number
from dmcopy.units import Sectors


@dataclass(frozen=True)
class Linear(Target):
    """*length* sectors of *device* from *offset* (sectors) on."""

    KIND: ClassVar[str] = "linear"
    device: str
    offset: Sectors

    def args(self) -> list[str]:
        return [self.device, str(self.offset)]

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        expect(args, 2)
        return cls(length, args[0], Sectors(number(args[1])))

    def devices(self) -> tuple[str, ...]:
        return (self.device,)
