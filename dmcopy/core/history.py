"""How a copy went, over time and over the image: what `dmcopy report` draws.

Bounded, however long the copy takes and however large the image is: when a series is full its
neighbours are joined in pairs, so that it keeps the whole time at half the resolution; the image
is cut into at most `MOST_CELLS` cells.  Pure: whoever looks and keeps it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from dmcopy.core.extent import Extent
from dmcopy.units import Bytes, Sectors, round_up, sectors_down

_NONE: Final = Bytes(0)
MOST_SAMPLES: Final = 600
MOST_HOLDS: Final = 600
MOST_CELLS: Final = 1024
VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was so at one moment, and what the application wrote since the sample before."""

    at: float  # seconds since the begin time; negative: before it
    phase: str  # before | copy | verify | after
    bytes_done: Bytes = _NONE
    bytes_retired: Bytes = _NONE
    cow_used: Bytes | None = None
    cow_total: Bytes | None = None
    # forecast, as seconds since the begin time; None: not known, or never
    done_at: float | None = None
    full_at: float | None = None
    span: float = 0.0  # seconds since the sample before
    writes: int = 0  # of the application's to the origin, completed in the span
    write_seconds: float = 0.0  # summed over these writes: divided by them, the mean latency

    def joined(self, later: Sample) -> Sample:
        """Give one sample for this and the *later* one, its neighbour."""
        return replace(
            later,
            span=self.span + later.span,
            writes=self.writes + later.writes,
            write_seconds=self.write_seconds + later.write_seconds,
        )


class Held(NamedTuple):
    """A hold of the application's writes."""

    at: float  # seconds since the begin time
    reason: str  # begin | retire | gate | brake | grow | end
    seconds: float


class Cell(NamedTuple):
    """A part of the image: when it was copied, and from where."""

    at: float = 0.0  # seconds since the begin time, of the last of it
    copied: Sectors = Sectors(0)
    from_cow: Sectors = Sectors(0)  # of copied


class Copied(NamedTuple):
    """A segment that was copied."""

    extent: Extent
    from_cow: Bytes


def cell_size(length: Sectors, segment: Sectors) -> Sectors:
    """Give the smallest multiple of *segment* that cuts *length* into at most `MOST_CELLS`."""
    return round_up(Sectors(max(-(-length // MOST_CELLS), 1)), segment)


class History:
    """The history of one job."""

    def __init__(self, length: Sectors, segment: Sectors) -> None:
        """*length* of the image and *segment* in sectors."""
        self.length = length
        self.cell_size = cell_size(length, segment)
        self.samples: list[Sample] = []
        self.holds: list[Held] = []
        self.holds_lost = 0  # the shortest are not kept when there are too many
        self.cells: list[Cell] = [Cell()] * -(-length // self.cell_size)

    def add(self, sample: Sample) -> None:
        """Add the next sample."""
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:
            self.samples = _halved(self.samples)

    def held(self, hold: Held) -> None:
        """Add a hold."""
        self.holds.append(hold)
        if len(self.holds) > MOST_HOLDS:
            longest = sorted(self.holds, key=lambda one: one.seconds)[len(self.holds) // 2 :]
            self.holds_lost += len(self.holds) - len(longest)
            self.holds = sorted(longest)

    def copied(self, at: float, segments: Iterable[Copied]) -> None:
        """Note that *segments* were copied by *at*, in seconds since the begin time."""
        for extent, from_cow in segments:
            index = extent.start // self.cell_size  # a cell is a multiple of segments
            old = self.cells[index]
            self.cells[index] = Cell(
                at,
                Sectors(old.copied + extent.length),
                Sectors(old.from_cow + sectors_down(from_cow)),
            )

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps; `from_json` reads it."""
        return {
            "version": VERSION,
            "length_sectors": self.length,
            "cell_sectors": self.cell_size,
            "samples": [_row(sample) for sample in self.samples],
            "holds": [
                [round(hold.at, 4), hold.reason, round(hold.seconds, 6)] for hold in self.holds
            ],
            "holds_lost": self.holds_lost,
            "cells": [[round(cell.at, 3), cell.copied, cell.from_cow] for cell in self.cells],
        }

    @classmethod
    def from_json(cls, kept: Any) -> History | None:  # Any: JSON
        """Read what `as_json` gave; None for what another version wrote."""
        if not isinstance(kept, dict) or kept.get("version") != VERSION:
            return None
        history = cls(Sectors(kept["length_sectors"]), Sectors(kept["cell_sectors"]))
        history.samples = [_sample(row) for row in kept["samples"]]
        history.holds = [Held(at, reason, seconds) for at, reason, seconds in kept["holds"]]
        history.holds_lost = kept["holds_lost"]
        history.cells = [
            Cell(at, Sectors(copied), Sectors(from_cow)) for at, copied, from_cow in kept["cells"]
        ]
        return history


_FIELDS: Final = tuple(Sample.__dataclass_fields__)


def _row(sample: Sample) -> list[Any]:  # Any: JSON
    values = [getattr(sample, name) for name in _FIELDS]
    return [round(value, 4) if isinstance(value, float) else value for value in values]


def _sample(row: Sequence[Any]) -> Sample:  # Any: JSON
    values: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))  # Any: JSON
    return Sample(**values)


def _halved(samples: Sequence[Sample]) -> list[Sample]:
    """Join neighbours in pairs, never over the end of a phase; the newest stays as it is."""
    joined: list[Sample] = []
    open_pair = False
    for sample in samples[:-1]:
        if open_pair and joined[-1].phase == sample.phase:
            joined[-1] = joined[-1].joined(sample)
            open_pair = False
        else:
            joined.append(sample)
            open_pair = True
    return [*joined, samples[-1]]
