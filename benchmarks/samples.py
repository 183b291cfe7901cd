"""What is measured: one value a run, and what a whole benchmark is made of.

Plain values that go to JSON and come back; nothing here starts anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

IDLE = "idle"
LOAD = "load"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What the application's writes took while a copy ran; seconds."""

    writes: int
    iops: float
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One copy.

    *command_seconds* is the wall time of everything an administrator would wait for: process
    start, snapshot made and removed.  *copy_seconds* is the movement of the data alone.
    """

    method: str
    state: str  # idle | load
    round: int
    order: int  # which run of its round
    command_seconds: float
    copy_seconds: float
    startup_seconds: float | None = None  # subtracted to give copy_seconds, where it was
    latency: Latency | None = None
    baseline: Latency | None = None  # of the same load, just before the copy
    hold_seconds: tuple[float, ...] = ()
    bytes_cow: int | None = None
    exact: bool | None = None  # the destination was compared with the source

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:  # Any: JSON
        """Take what `asdict` made."""
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        for name in ("latency", "baseline"):
            if known.get(name) is not None:
                known[name] = Latency(**known[name])
        known["hold_seconds"] = tuple(known.get("hold_seconds", ()))
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What all processes of one dmcopy together took, sampled while it copied."""

    name: str
    source_bytes: int
    copied_bytes: int
    seconds: float
    finished: bool  # False: stopped at the time limit
    load: bool  # whether the source was written meanwhile
    exceptions: int
    peak_pss_bytes: int  # largest sum over all processes of one moment
    peak_rss_bytes: int  # the same of Rss: counts shared pages once a process
    high_water_bytes: int  # sum of each process's VmHWM: no moment need have had it
    curve: tuple[tuple[float, int], ...] = ()  # (seconds, Pss)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Memory:  # Any: JSON
        """Take what `asdict` made."""
        return cls(**{**data, "curve": tuple((at, size) for at, size in data["curve"])})


@dataclass
class Run:
    """One benchmark: how it was set up, and every sample."""

    setup: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    machine: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    samples: list[Sample] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what goes to the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:  # Any: JSON
        """Take what `as_json` made."""
        return cls(
            setup=dict(data["setup"]),
            machine=dict(data["machine"]),
            samples=[Sample.from_json(one) for one in data["samples"]],
            memory=[Memory.from_json(one) for one in data["memory"]],
            failures=list(data["failures"]),
        )
