"""Recorded copies, and what a forecast would have said of them at any moment.

Each file in ``tests/data/forecast`` is one copy in the lab's guest, under a load (see the README
there).  A COW device of another size would have been used in the same way until it was full, so
one series asks about several sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from dmcopy.core import geometry
from dmcopy.core.forecast import Forecast
from dmcopy.units import Bytes, to_bytes, to_sectors

FOLDER: Final = Path(__file__).parents[1] / "tests" / "data" / "forecast"
_SHARES: Final = (0.7, 0.9)  # of the copy: when a COW device that is asked about is full


class Point(NamedTuple):
    """One progress event."""

    at: float  # seconds since the begin time
    used: Bytes
    done: Bytes
    total: Bytes  # of the COW device


class Fill(NamedTuple):
    """A size of the COW device, and when it is full."""

    total: Bytes
    at: float
    real: bool  # the recorded one did


@dataclass(frozen=True, kw_only=True)
class Series:
    """One copy."""

    name: str
    about: str
    size: Bytes  # of the source
    chunk: Bytes
    state: str  # ended; failed: the COW device overflowed
    ended: float
    points: tuple[Point, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Series:  # Any: JSON
        """Take what `benchmarks.recorder` made."""
        return cls(
            name=data["name"],
            about=data["about"],
            size=Bytes(data["size"]),
            chunk=Bytes(data["chunk"]),
            state=data["state"],
            ended=data["ended"],
            points=tuple(Point(*one) for one in data["points"]),
        )

    @property
    def most(self) -> Bytes:
        """The size of a COW device that never overflows."""
        return to_bytes(geometry.never_overflow(to_sectors(self.size), to_sectors(self.chunk)))

    @property
    def whole(self) -> bool:
        """Whether the copy came to its end."""
        return self.state == "ended"

    @property
    def done_at(self) -> float:
        """When all was copied, or would have been at the mean pace."""
        last = self.points[-1]
        return self.ended if self.whole else last.at * self.size / last.done

    def fills(self) -> Iterator[Fill]:
        """Give sizes of the COW device that do not last, and until when they did."""
        if not self.whole:
            yield Fill(self.points[-1].total, self.ended, real=True)
        seen = set()
        for share in _SHARES:
            total = self.points[int(share * len(self.points))].used
            at = next(point.at for point in self.points if point.used >= total)
            if at not in seen:
                seen.add(at)
                yield Fill(total, at, real=False)

    def until(self, at: float) -> tuple[Forecast, Point]:
        """Give the forecast of someone who watched until *at*, and what was seen last."""
        forecast = Forecast(most=self.most)
        last = self.points[0]
        for point in self.points:
            if point.at > at:
                break
            forecast.add(point.at, used=point.used, done=point.done)
            last = point
        return forecast, last


def load(path: Path) -> Series:
    """Read a file."""
    return Series.from_json(json.loads(path.read_text()))


def load_all(folder: Path = FOLDER) -> list[Series]:
    """Read all files of a folder, by name."""
    return [load(path) for path in sorted(folder.glob("*.json"))]
