"""zero: reads as zeroes, forgets what is written.

Kernel: Documentation/admin-guide/device-mapper/zero.rst, drivers/md/dm-zero.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.core.target import Target, expect
from dmcopy.units import Sectors


@dataclass(frozen=True)
class Zero(Target):
    """*length* sectors of nothing."""

    KIND: ClassVar[str] = "zero"

    def args(self) -> list[str]:
        return []

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        expect(args, 0)
        return cls(length)

    def devices(self) -> tuple[str, ...]:
        return ()
