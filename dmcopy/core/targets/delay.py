"""delay: passes I/O on after a while, reads, writes and flushes each after their own.

Kernel: Documentation/admin-guide/device-mapper/delay.rst, drivers/md/dm-delay.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from dmcopy.core.target import Target, expect, number
from dmcopy.units import Sectors


class Path(NamedTuple):
    """Where one class of I/O goes, and after how long."""

    device: str
    offset: Sectors
    milliseconds: int


@dataclass(frozen=True)
class Delay(Target):
    """One `Path` for all I/O; or two: reads, and writes with flushes; or three: each."""

    KIND: ClassVar[str] = "delay"
    paths: tuple[Path, ...]

    def args(self) -> list[str]:
        return [str(word) for path in self.paths for word in path]

    @classmethod
    def parse(cls, length: Sectors, args: Sequence[str]) -> Self:
        expect(args, 3, 6, 9)
        triplets = zip(args[::3], args[1::3], args[2::3], strict=True)
        return cls(length, tuple(Path(d, Sectors(number(o)), number(ms)) for d, o, ms in triplets))

    def devices(self) -> tuple[str, ...]:
        return tuple(path.device for path in self.paths)


class DelayStatus(NamedTuple):
    """How many bios are held now."""

    reads: int
    writes: int
    flushes: int

    @classmethod
    def parse(cls, text: str) -> DelayStatus:
        """Read the target's status; raises ValueError for what it is not."""
        words = text.split()
        expect(words, 3)
        return cls(*(number(word) for word in words))
