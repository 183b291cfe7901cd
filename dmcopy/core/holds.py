"""How long writes were held, by one job: what its progress, `dmcopy top` and the metrics tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from dmcopy.core.durations import Durations

# Seconds.  A hold is at most so long, or longer than the one before: a monitoring system adds up
# the counts of many hosts, so these are the same for ever.
BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Holds:
    """Every hold of one job since its process began, whatever it was for."""

    def __init__(self) -> None:
        self._times = Durations()
        self._counts = [0] * (len(BOUNDS) + 1)  # the last one: longer than all bounds
        self._last: float | None = None

    def add(self, seconds: float) -> None:
        """Add one, the last one so far."""
        self._times.add(seconds)
        self._counts[sum(seconds > bound for bound in BOUNDS)] += 1
        self._last = seconds

    def as_json(self) -> dict[str, Any] | None:  # Any: JSON
        """Give what is told of them, None where there was none."""
        found = self._times.summary()
        if found is None:
            return None
        return {
            "count": self._times.count,
            "sum_seconds": round(self._times.total, 9),
            "last_seconds": self._last,
            "p99_seconds": found.p99,
            "max_seconds": found.most,
            "counts": list(self._counts),
        }


def together(told: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:  # Any: JSON
    """Sum up what several jobs told; which of their last holds was the last is not known.

    The quantile is the worst of theirs.
    """
    found = [one for one in told if one is not None]
    if not found:
        return None
    return {
        "count": sum(one["count"] for one in found),
        "sum_seconds": round(sum(one["sum_seconds"] for one in found), 9),
        "last_seconds": None,
        "p99_seconds": max(one["p99_seconds"] for one in found),
        "max_seconds": max(one["max_seconds"] for one in found),
        "counts": [sum(column) for column in zip(*(one["counts"] for one in found), strict=True)],
    }
