"""Many short times, as figures: how many, the longest, and quantiles within 5 %.

Bounded: counts in buckets that grow by a factor, not the times themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final, NamedTuple

_FACTOR: Final = math.log(1.05)
_SMALLEST: Final = 1e-6  # seconds: what is shorter is that


class Summary(NamedTuple):
    """Seconds; None where there was none."""

    median: float
    p99: float
    most: float


class Durations:
    """A distribution of times in seconds."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.most = 0.0

    def add(self, seconds: float) -> None:
        """Add one."""
        self._buckets[math.ceil(math.log(max(seconds, _SMALLEST) / _SMALLEST) / _FACTOR)] += 1
        self.count += 1
        self.total += seconds
        self.most = max(self.most, seconds)

    def quantile(self, share: float) -> float:
        """Give the time that *share* of them do not exceed; 0.0 where there is none."""
        wanted = math.ceil(share * self.count)
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return min(_SMALLEST * math.exp(bucket * _FACTOR), self.most)
        return 0.0

    def summary(self) -> Summary | None:
        """Give the figures that are told; None where there is none."""
        if not self.count:
            return None
        return Summary(self.quantile(0.5), self.quantile(0.99), self.most)
