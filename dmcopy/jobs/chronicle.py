"""Keeps the history of one copy while it runs, for `dmcopy report`; and in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from dmcopy.core.extent import Extent
from dmcopy.core.forecast import Outlook
from dmcopy.core.history import Copied, Held, History, Sample
from dmcopy.kernel.diskstat import IoTimes
from dmcopy.units import Bytes, Sectors, to_bytes

_LOOK_SECONDS: Final = 1.0
_SHORT_SECONDS: Final = 0.2  # at first, so that a short copy has a history too
_SHORT_UNTIL: Final = 20.0
_KEEP_SECONDS: Final = 10.0


class Standing(NamedTuple):
    """How far a job is."""

    phase: str  # copy | verify | after
    done: Bytes
    retired: Bytes
    cow: tuple[Bytes, Bytes] | None
    outlook: Outlook | None


class Chronicle:
    """The history of one job; `tick` often.

    Times are of the wall clock, for a job goes on in another process, perhaps after a reboot.
    """

    def __init__(
        self,
        history: History,
        writes: Callable[[], IoTimes | None],
        keep: Callable[[History], None],
        *,
        begin: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """*writes* asks for the origin's counters, None where they cannot be had.

        *keep* puts the history into the journal.  *begin* is the begin time, where there is one
        already, in seconds since 1970.
        """
        self._history = history
        self._writes = writes
        self._keep = keep
        self._clock = clock
        self._begin = begin
        self._times = writes()
        self._looked = self._kept = self._started = clock()
        self._early: list[tuple[float, str, float]] = []  # holds before the begin time is known

    def begun(self, begin: float) -> None:
        """Note that the begin time is fixed: what was counted so far was before it."""
        if self._begin is None:
            self._begin = begin
            self._add(Sample(at=0.0, phase="before"), at=begin)
            for at, reason, seconds in self._early:
                self._history.held(Held(at - begin, reason, seconds))
            self._early.clear()

    def held(self, reason: str, seconds: float) -> None:
        """Note that writes were held."""
        at = self._clock()
        if self._begin is None:
            self._early.append((at, reason, seconds))
        else:
            self._history.held(Held(at - self._begin, reason, seconds))

    def copied(self, cells: Iterable[tuple[int, int, int]]) -> None:
        """Note what a batch copied: start, sectors, and of these from the COW device."""
        at = self._clock() - (self._begin or self._started)
        self._history.copied(
            at,
            (
                Copied(Extent(Sectors(start), Sectors(length)), to_bytes(Sectors(from_cow)))
                for start, length, from_cow in cells
            ),
        )

    def tick(self, now: Standing, *, last: bool = False) -> None:
        """Look, if it is time; with *last* at once, and keep it."""
        at = self._clock()
        if self._begin is None:
            return
        pause = _SHORT_SECONDS if at - self._started < _SHORT_UNTIL else _LOOK_SECONDS
        if last or at - self._looked >= pause:
            elapsed = at - self._begin
            outlook = now.outlook
            done = outlook.done.likely if outlook is not None and outlook.done else None
            full = outlook.full.likely if outlook is not None and outlook.full else None
            used, total = now.cow or (None, None)
            self._add(
                Sample(
                    at=elapsed,
                    phase=now.phase,
                    bytes_done=now.done,
                    bytes_retired=now.retired,
                    cow_used=used,
                    cow_total=total,
                    done_at=_after(elapsed, done),
                    full_at=_after(elapsed, full),
                ),
                at=at,
            )
        if last or at - self._kept >= _KEEP_SECONDS:
            self._kept = at
            self._keep(self._history)

    def _add(self, sample: Sample, *, at: float) -> None:
        """Add a sample with what the application wrote since the last one."""
        times, before = self._writes(), self._times
        span = max(at - self._looked, 0.0)
        self._looked, self._times = at, times
        if times is not None and before is not None:
            since = times.since(before)
            sample = replace(
                sample,
                writes=max(since.writes, 0),
                write_seconds=since.milliseconds / 1000,
            )
        self._history.add(replace(sample, span=span))


def _after(elapsed: float, seconds: float | None) -> float | None:
    """Give the time of something that is to be in *seconds*; None for never."""
    if seconds is None or seconds == float("inf"):
        return None
    return elapsed + seconds
