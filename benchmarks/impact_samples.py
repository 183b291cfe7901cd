"""What the benchmark of the impact measures: one value a run, and what all is made of.

Plain values that go to JSON and come back; nothing here starts anything.  Times are seconds,
those of `Window` since the begin time of the copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import floor
from typing import Any, Final, NamedTuple

from benchmarks.load import percentile

WINDOW: Final = 0.5


class Felt(NamedTuple):
    """What the application's writes took in some span of time."""

    writes: int
    iops: float
    p50: float
    p99: float
    p999: float
    max: float


class Window(NamedTuple):
    """The same for a window of `WINDOW` seconds that begins *at*."""

    at: float
    writes: int
    iops: float
    p50: float
    p99: float
    p999: float


class Held(NamedTuple):
    """Writes were held: by dmcopy as it says, by LVM as it was seen from outside."""

    reason: str  # begin | retire | grow | brake | end | segment (--gate segment)
    seconds: float
    writes: int | None = None  # of a segment: that waited at its end


Log = Sequence[tuple[float, float]]  # (time.time() when a write ended, seconds it took)


def felt(log: Log, begin: float, end: float) -> Felt | None:
    """Give the figures of the writes that ended in a span; None when there are none."""
    took = sorted(seconds for at, seconds in log if begin <= at < end)
    if not took:
        return None
    p50, p99, p999 = (_rounded(percentile(took, share)) for share in (0.5, 0.99, 0.999))
    iops = round(len(took) / (end - begin), 1)
    return Felt(len(took), iops, p50, p99, p999, _rounded(took[-1]))


def windows(log: Log, begin: float) -> tuple[Window, ...]:
    """Cut a log into windows, the first and the last of which are full; *begin* is a border."""
    if not log:
        return ()
    times = [at - begin for at, _ in log]
    first, last = floor(min(times) / WINDOW) + 1, floor(max(times) / WINDOW)
    found = []
    for number in range(first, last):
        at = number * WINDOW
        one = felt(log, begin + at, begin + at + WINDOW)
        # nothing ended: what is known is that it took longer, and a later window says how long
        found.append(Window(at, *one[:-1]) if one else Window(at, 0, 0.0, 0.0, 0.0, 0.0))
    return tuple(found)


def _rounded(seconds: float) -> float:
    return round(seconds, 6)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One copy under one load, or a while without a copy.

    *snapshot_seconds* is how long there was a snapshot: writes cost a chunk of the COW device in
    all of it, which is longer than the copy.
    """

    method: str
    load: str
    round: int
    order: int  # which run of its round and load
    command_seconds: float
    copy_seconds: float
    snapshot_seconds: float
    chunks: int | None = None  # that were written to the COW device
    before: Felt | None = None
    during: Felt | None = None  # from the begin time, its swap included, to the end of the copy
    after: Felt | None = None
    holds: tuple[Held, ...] = ()
    retires: int = 0
    windows: tuple[Window, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:  # Any: JSON
        """Take what `asdict` made; named tuples became lists."""
        known = dict(data)
        for name in ("before", "during", "after"):
            if known[name] is not None:
                known[name] = Felt(*known[name])
        known["holds"] = tuple(Held(*one) for one in known["holds"])
        known["windows"] = tuple(Window(*one) for one in known["windows"])
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class Retired:
    """A writer as fast as it can, on one part of a device."""

    part: str  # plain | retired | snapshot
    round: int
    iops: float
    first_iops: float  # of its first writes, of which nearly each finds a chunk of its own
    p99: float


@dataclass
class Run:
    """One benchmark: how it was set up, and every sample."""

    setup: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    machine: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    samples: list[Sample] = field(default_factory=list)
    retired: list[Retired] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what goes to the file."""
        return {"benchmark": "impact", **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:  # Any: JSON
        """Take what `as_json` made."""
        return cls(
            setup=dict(data["setup"]),
            machine=dict(data["machine"]),
            samples=[Sample.from_json(one) for one in data["samples"]],
            retired=[Retired(**one) for one in data["retired"]],
            failures=list(data["failures"]),
        )
