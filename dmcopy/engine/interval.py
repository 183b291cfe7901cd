"""Something that is due every so many seconds, asked for after each piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PROGRESS_SECONDS: Final = 0.2  # from one progress message to the next

_LOOKS: Final = 10  # at the clock, in one interval
_MOST_CALLS: Final = 8  # without a look: work that gets slower at once is noticed so late


class Interval:
    """Due every *seconds*.  One thread at a time.

    Where the calls come fast, not each of them looks at the clock: that is a system call
    where the kernel has no vDSO for its clock source (vdso(7); user-mode Linux, many virtual
    machines), and then costs as much as asking for the snapshot's status.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last = self._looked = clock()
        self._calls = self._left = 1  # from one look to the next; of these, until the next
        self.elapsed = 0.0  # seconds between the last two times that it was due

    def due(self) -> bool:
        """Tell whether *seconds* are over since it was due.

        It may be told a tenth of them late; eight calls late where these slow down at once.
        """
        self._left -= 1
        if self._left:
            return False
        now = self._clock()
        pace = (now - self._looked) / self._calls
        step = self._seconds / _LOOKS
        fitting = int(step / pace) if pace * _MOST_CALLS > step else _MOST_CALLS
        # no more than twice as many as were seen to be fast: the first ones tell little
        self._calls = self._left = min(max(fitting, 1), 2 * self._calls)
        self._looked = now
        if now - self._last < self._seconds:
            return False
        self.elapsed, self._last = now - self._last, now
        return True
