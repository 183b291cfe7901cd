"""When the COW device would be full, if writes go on as they do."""

from __future__ import annotations

from collections import deque
from typing import Final

from dmcopy.units import Bytes

_WINDOW_SECONDS: Final = 30.0
_LEAST_SECONDS: Final = 1.0


class FillForecast:
    """Follows how a COW device fills; the clock is the caller's (monotonic seconds)."""

    def __init__(self, window: float = _WINDOW_SECONDS) -> None:
        self._window = window
        self._seen: deque[tuple[float, Bytes]] = deque()

    def add(self, now: float, used: Bytes) -> None:
        """Note that *used* bytes are used *now*; forgets what is older than the window."""
        self._seen.append((now, used))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._window:
            self._seen.popleft()

    def seconds_until_full(self, total: Bytes) -> float | None:
        """Give the seconds until *total* bytes are used at the rate of the window.

        None when it does not fill, or was not watched for long enough; 0.0 when it is full.
        """
        if not self._seen:
            return None
        (first, at_first), (last, at_last) = self._seen[0], self._seen[-1]
        if at_last >= total:
            return 0.0
        if last - first < _LEAST_SECONDS or at_last <= at_first:
            return None
        return (total - at_last) * (last - first) / (at_last - at_first)
