"""Axes: where a value lies, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

_TIME_STEPS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800),
)
_NOTHING: Final = 1e-9  # less is taken for 0
_MOST_DECADES: Final = 5  # with more of them not each has a line


class Tick(NamedTuple):
    """A value with its text."""

    value: float
    text: str


class Scale(Protocol):
    """One axis."""

    @property
    def ticks(self) -> tuple[Tick, ...]: ...
    def share(self, value: float) -> float:
        """Give where *value* lies, 0 to 1; what is outside lies at the nearer end."""
        ...


@dataclass(frozen=True)
class Linear:
    """From *low* to *high*, evenly."""

    low: float
    high: float
    ticks: tuple[Tick, ...] = ()

    def share(self, value: float) -> float:
        """Give where *value* lies, 0 to 1."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass(frozen=True)
class Log:
    """From *low* to *high*, each decade as large as the next; both above 0."""

    low: float
    high: float
    ticks: tuple[Tick, ...] = ()

    def share(self, value: float) -> float:
        """Give where *value* lies, 0 to 1; 0 lies at the low end."""
        if value <= self.low:
            return 0.0
        return min(math.log(value / self.low) / math.log(self.high / self.low), 1.0)


def times(low: float, high: float) -> Linear:
    """Make an axis of times, in seconds, that just holds both; 3 to 8 ticks, fewer long ones."""
    if high <= low:
        high = low + 1.0
    most = 6 if high >= 3600 else 8
    weeks = 604800.0 * math.ceil((high - low) / (most - 1) / 604800)
    step = next((s for s in _TIME_STEPS if (high - low) / s <= most - 1), weeks)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # a short copy is told in seconds throughout, for 0.5 s beside 0:01 is read twice
    text = _seconds if max(-low, high) < 60 else clock
    ticks = (Tick(n * step, text(n * step)) for n in range(first, last + 1))
    return Linear(low, high, tuple(ticks))


def counts(high: float, text: Callable[[float], str]) -> Linear:
    """Make an axis from 0 to a round number above *high*, with 3 to 6 ticks."""
    high = high if high > _NOTHING else 1.0
    power = 10.0 ** math.floor(math.log10(high))
    step = next(m * power for m in (0.2, 0.5, 1.0, 2.0) if high / (m * power) <= 5)
    top = math.ceil(high / step - 1e-9)
    return Linear(0.0, top * step, tuple(Tick(n * step, text(n * step)) for n in range(top + 1)))


def decades(values: Iterable[float]) -> Log:
    """Make a logarithmic axis of short times, of whole decades, that holds all above 0."""
    known = [value for value in values if value > _NOTHING] or [0.001]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)
    every = -(-(high - low) // _MOST_DECADES)
    ticks = (Tick(10.0**n, brief(10.0**n)) for n in range(low, high + 1, every))
    return Log(10.0**low, 10.0**high, tuple(ticks))


def brief(seconds: float) -> str:
    """Write a short time with three figures: ``85 µs``, ``0.42 ms``, ``1.2 s``."""
    for unit, size, least in (("s", 1.0, 0.9995), ("ms", 1e-3, 0.0000999)):
        if seconds >= least:  # 0.42 ms and not 420 µs, for that is how people compare latencies
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds * 1e6)} µs"


def moment(seconds: float) -> str:
    """Write a time since the begin time as exactly as is of use: ``0.8 s``, ``1:30``."""
    # + 0.0: there is a -0.0
    return f"{round(seconds, 1) + 0.0:.1f} s" if abs(seconds) < 9.95 else clock(round(seconds))


def percent(share: float) -> str:
    """Write a share, a small one with a decimal: ``0.5%``, ``62%``."""
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def clock(seconds: float) -> str:
    """Write a time since the begin time, in whole seconds: ``-0:05``, ``1:30``, ``2:00:00``."""
    minutes, rest = divmod(abs(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if seconds < 0 else ""
    return sign + (f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.6g} s"


def _three(value: float) -> str:
    """Write with three significant figures, and no power of ten."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
