"""error: every read and write fails with EIO.

Kernel: drivers/md/dm-target.c (io_err_target); it takes and ignores any arguments, so one
that has some is not this value but `Opaque`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.core.target import Target, expect
from dmcopy.units import Sectors


@dataclass(frozen=True)
class Error(Target):
    """*length* sectors that always fail."""

    KIND: ClassVar[str] = "error"

    def args(self) -> list[str]:
        return []

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        expect(args, 0)
        return cls(length)

    def devices(self) -> tuple[str, ...]:
        return ()
