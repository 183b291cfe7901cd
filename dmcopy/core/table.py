"""A dm table: targets laid end to end from sector 0.

Kernel: drivers/md/dm-table.c (a gap or an overlap is refused there too).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from dmcopy.core.target import Opaque, Target, number
from dmcopy.core.targets import TARGETS
from dmcopy.units import Sectors

_KNOWN: Final = {target.KIND: target for target in TARGETS}
_LEAST_WORDS: Final = 3  # start, length, kind


class Row(NamedTuple):
    """A target and the sector it starts at."""

    start: Sectors
    target: Target

    def __str__(self) -> str:
        words = [str(self.start), str(self.target.length), self.target.kind]
        return " ".join([*words, *self.target.args()])


@dataclass(frozen=True)
class Table:
    """The rows of a live or inactive table; empty where a device has none."""

    rows: tuple[Row, ...] = ()

    @classmethod
    def of(cls, *targets: Target) -> Table:
        """Lay *targets* end to end."""
        return cls(tuple(_laid(targets)))

    @classmethod
    def parse(cls, text: str) -> Table:
        """Read the lines of ``dmsetup table NAME``; raises ValueError for anything else."""
        rows = [_row(line) for line in text.splitlines() if line.strip()]
        table = cls.of(*(row.target for row in rows))
        if list(table.rows) != rows:
            raise ValueError(f"the targets do not lie end to end: '{text.strip()}'")
        return table

    def __str__(self) -> str:
        return "\n".join(str(row) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def length(self) -> Sectors:
        """How many sectors the table maps."""
        return Sectors(sum(row.target.length for row in self.rows))

    def devices(self) -> frozenset[str]:
        """Name all devices that the targets use."""
        return frozenset(device for row in self.rows for device in row.target.devices())

    def kinds(self) -> frozenset[str]:
        """Name the kinds of the targets."""
        return frozenset(row.target.kind for row in self.rows)


def _laid(targets: Iterable[Target]) -> Iterable[Row]:
    start = Sectors(0)
    for target in targets:
        if target.length <= 0:
            raise ValueError(f"a target of {target.length} sectors")
        yield Row(start, target)
        start = Sectors(start + target.length)


def _row(line: str) -> Row:
    words = line.split()
    if len(words) < _LEAST_WORDS:
        raise ValueError(f"'{line}' is not a line of a dm table")
    return Row(Sectors(number(words[0])), _target(Sectors(number(words[1])), words[2:]))


def _target(length: Sectors, words: list[str]) -> Target:
    """Read a target; one that would not give its own words back is kept as it is."""
    known = _KNOWN.get(words[0])
    if known is not None:
        try:
            target = known.parse(length, words[1:])
        except ValueError:
            return Opaque.parse(length, words)
        if target.args() == words[1:]:
            return target
    return Opaque.parse(length, words)
