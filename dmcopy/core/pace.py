"""The pace behind ``--rate auto``: as fast as the origin's own writes bear it.

It judges by how long the origin's writes take, as TCP does by delay (Vegas, BBR): it learns
their latency at a slow pace, speeds up while it stays near that, and slows down when it rises.
The slow pace is one *after* begin: the copy-on-write of the snapshot costs writes something
at any pace of ours, and is no reason to slow down.

Only the mean of all writes is known, so an application that by itself writes in bursts, each
with long queues, slows the copy for some seconds at each.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from dmcopy.units import MIB, Bytes

FLOOR: Final = Bytes(1 * MIB)  # a second: the copy always goes on

_START: Final = 8  # floors: the pace of the first seconds
_FACTOR: Final = 2.0  # a latency is good up to this much of the baseline
_MARGIN_MS: Final = 2.0  # and anyway up to this much above it
_NEAR: Final = 0.8  # of what is good: from here on, no faster
_FEW: Final = 16  # writes: fewer say too little, unless they are all of four windows
_WINDOWS: Final = 4
_BACK: Final = (0.4, 0.85)  # how far a step back goes, at most and at least
_STEP: Final = 0.05  # the first step up, of the rate; each further one is half as large again
_STRIKES: Final = 4  # steps back in a row that did not help enough: is it us at all?
_AGE_SECONDS: Final = 60.0  # then a baseline that matters is probed again
_RECENT: Final = 8  # windows: what was moved in these is what we can do


class _Window(NamedTuple):
    writes: int
    milliseconds: int


class AutoPace:
    """Tell it once a second or so what happened; it tells the rate.  No clock inside."""

    def __init__(self, floor: Bytes = FLOOR) -> None:
        """Never go below *floor* bytes a second."""
        self._floor = float(floor)
        self._rate = self._floor * _START
        self._gain = 1.0  # the next step up: doubling, until the first sign of trouble
        self._baseline: float | None = None  # milliseconds a write
        self._measured = 0.0  # when the baseline was
        self._resume: float | None = None  # the rate before a probe; None when there is none
        self._is_draining = False  # the first window of a probe
        self._strikes = 0
        self._seen: deque[_Window] = deque(maxlen=_WINDOWS)  # at this rate or a lower one
        self._moved: deque[float] = deque(maxlen=_RECENT)  # bytes a second
        self._last: float | None = None

    @property
    def rate(self) -> Bytes:
        """Bytes a second, as of now."""
        return Bytes(int(self._rate))

    def update(self, now: float, moved: Bytes, writes: int, milliseconds: int) -> Bytes:
        """Give the rate until the next call, which must be in effect at once.

        *moved* are the bytes copied, *writes* the writes that the application has completed
        on the origin and *milliseconds* the time they took together, all since the last call;
        *now* is in monotonic seconds.
        """
        if self._last is None or now <= self._last:
            self._last = now
            return self.rate  # nobody knows for how long it was
        self._moved.append(moved / (now - self._last))
        self._last = now
        self._seen.append(_Window(writes, milliseconds))
        if self._is_draining:  # what queued up at the rate before tells nothing of this one
            self._is_draining = False
            self._seen.clear()
        elif writes == 0:
            self._calm()
        elif (latency := self._latency()) is not None:
            self._judge(now, latency)
        return self.rate

    def _latency(self) -> float | None:
        """Give the milliseconds a write took of late; None when too little is known."""
        count = total = 0
        for window in reversed(self._seen):
            count, total = count + window.writes, total + window.milliseconds
            if count >= _FEW:
                return total / count
        return total / count if count and len(self._seen) == _WINDOWS else None

    def _calm(self) -> None:
        # nobody waits for us
        if self._resume is not None:
            self._end_probe()
        else:
            self._faster(1.0)

    def _judge(self, now: float, latency: float) -> None:
        if self._resume is not None or (
            self._baseline is None and self._rate <= self._floor * _START
        ):
            self._baseline, self._measured = latency, now
            self._end_probe()
            return
        if self._baseline is None:
            self._begin_probe()
            return
        good = max(self._baseline * _FACTOR, self._baseline + _MARGIN_MS)
        if latency > good:
            if self._strikes < _STRIKES:
                self._slower(good / latency)
            else:  # perhaps it is not us: the load became slower by itself
                self._begin_probe()
            return
        self._strikes = 0
        if now - self._measured >= _AGE_SECONDS and latency > _MARGIN_MS:
            self._begin_probe()  # below the margin it would be good by any baseline
            return
        # a lower one is nearer to the truth, but one window alone may be luck
        self._baseline = min(self._baseline, (self._baseline + latency) / 2)
        near = good * _NEAR
        if latency < near:
            self._faster((near - latency) / (near - self._baseline))
        else:
            self._gain = _STEP

    def _begin_probe(self) -> None:
        self._resume, self._rate = self._rate, self._floor
        self._is_draining = True
        self._strikes = 0

    def _end_probe(self) -> None:
        if self._resume is not None:
            self._rate, self._resume = self._resume, None
            self._seen.clear()

    def _slower(self, by: float) -> None:
        # from what we really do: a limit far above it would have to fall for long to matter
        able = min(self._rate, max(self._moved))
        least, most = _BACK
        self._rate = max(able * min(max(by, least), most), self._floor)
        self._gain = _STEP
        self._strikes += 1
        self._seen.clear()

    def _faster(self, room: float) -> None:
        """Take a step; *room* is 1 where the latency is the baseline's, 0 where it is near."""
        # no further than twice what we do: or the limit would be none when it is needed
        most = 2 * max(self._moved)
        if most > self._rate:
            self._rate = min(self._rate * (1 + self._gain * min(room, 1.0)), most)
            self._gain = min(self._gain * 1.5, 1.0)
