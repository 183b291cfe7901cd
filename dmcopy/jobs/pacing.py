"""``--rate auto`` at work: looks how long the origin's writes take, and sets the worker's rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dmcopy.core.pace import AutoPace
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Bytes

_WINDOW_SECONDS: Final = 1.0


class Pacing:
    """The pace of one copy; `tick` often, from its begin time on."""

    def __init__(
        self,
        sysfs: Sysfs,
        devno: str,
        set_rate: Callable[[Bytes], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*devno* is the origin's; *set_rate* puts a rate in force."""
        self._sysfs = sysfs
        self._devno = devno
        self._set_rate = set_rate
        self._clock = clock
        self._pace = AutoPace()
        self._before = sysfs.io_times(devno)
        self._done = Bytes(0)
        self._looked = clock()
        self._pace.update(self._looked, Bytes(0), 0, 0)
        set_rate(self._pace.rate)

    def tick(self, done: Bytes) -> None:
        """Look, once a second; *done* bytes are copied."""
        now = self._clock()
        if now - self._looked < _WINDOW_SECONDS:
            return
        self._looked = now
        times = self._sysfs.io_times(self._devno)
        since = times.since(self._before)
        moved = Bytes(max(done - self._done, 0))
        self._before, self._done = times, done
        before = self._pace.rate
        rate = self._pace.update(now, moved, since.writes, since.milliseconds)
        if rate != before:
            self._set_rate(rate)
