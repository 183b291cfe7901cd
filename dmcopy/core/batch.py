"""How long a batch is: what is made durable, and recorded, together.

The shorter it is, the less an interruption costs and the sooner what is copied is retired; but
each batch ends with a flush and an entry in the journal, in which nothing is copied, and when it is
retired the kernel sends a uevent for the origin, which udev works off with all of its rules.
"""

from __future__ import annotations

from typing import Final

_SHARE: Final = 0.03  # of the time, that flush and journal may take
_LEAST_SECONDS: Final = 0.25
_LAG: Final = (
    0.02  # of the time so far: to retire what was copied still sooner saves next to nothing
)
_LATEST: Final = 0.5  # weight of the last batch


class BatchPace:
    """Makes batches as short as is worth it; *seconds* is how long the next one is."""

    def __init__(self, most: float) -> None:
        """*most* seconds is the longest."""
        self._most = most
        self._cost: float | None = None
        self.seconds = min(_LEAST_SECONDS, most)

    def ended(self, cost: float, elapsed: float) -> None:
        """Note that the end of a batch took *cost* seconds, *elapsed* after the copy began."""
        if self._cost is None:
            self._cost = cost
        self._cost += (cost - self._cost) * _LATEST
        self.seconds = min(max(self._cost / _SHARE, elapsed * _LAG, _LEAST_SECONDS), self._most)
