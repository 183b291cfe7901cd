"""When will the COW device be full, when will the copy be done, and which comes first?

Nothing here knows a device or a clock: `Forecast.add` is told what progress says, and follows how
the used space of the COW device and what is copied grow (core.curve).

A chunk is saved once: a writer that hits chunks at random meets ever more that are saved.  The
used space is followed as what it would be without that (`_Saturation`), which for such a
writer grows evenly.  One that never comes back to a chunk fills the device sooner, one that
keeps to a few chunks later; the low and the high end of a band are for these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from dmcopy.core.curve import AGES, Curve, Growth, seconds_until
from dmcopy.units import Bytes

_ALL: Final = 1 - 1e-9  # of the chunks are saved: nothing more can be
_GAP: Final = 30.0  # seconds without a word: perhaps the machine slept
_GAP_TIMES: Final = 10.0  # ... if they usually come so much faster
_LONGEST: Final = 600.0  # ... and certainly
_STILL: Final = 10.0  # seconds; a copy that does not move for so long is paused
_STILL_TIMES: Final = 4.0  # ... and for so many times what it took to move


class Band(NamedTuple):
    """A value that is not known exactly: ``low <= likely <= high``; high may be infinite."""

    low: float
    likely: float
    high: float


_NOW: Final = Band(0.0, 0.0, 0.0)


class First(StrEnum):
    """Which comes first: the copy is done, or the COW device is full."""

    DONE = "done"
    FULL = "full"
    UNSURE = "unsure"  # the bands overlap
    UNKNOWN = "unknown"  # not watched for long enough


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is to be expected if everything goes on as it does."""

    full: Band | None  # seconds until the COW device is full; None: never, or not known yet
    done: Band | None  # seconds until all is copied; None: not known yet, or it does not move
    needed: Band | None  # bytes of the COW device that are used when the copy is done
    fill_rate: float  # bytes a second, now
    first: First


class _Saturation:
    """Used space of a COW device, and what it would be if no chunk were ever hit twice.

    For writes that hit all chunks alike d(used)/dt is proportional to what is not saved.
    """

    def __init__(self, most: Bytes | None) -> None:
        self._most = most

    def even(self, used: float) -> float:
        """Give what would be used without saturation."""
        if self._most is None:
            return used
        return -self._most * math.log1p(-min(used / self._most, _ALL))

    def used(self, even: float) -> float:
        """Invert `even`."""
        return even if self._most is None else -self._most * math.expm1(-even / self._most)

    def left(self, used: float) -> float:
        """Give the share of writes that still need space."""
        return 1.0 if self._most is None else 1.0 - min(used / self._most, _ALL)

    def capped(self, used: float) -> float:
        """Give *used*, or what can be used at most."""
        return used if self._most is None else min(used, self._most)


class _Fill(NamedTuple):
    """How much more may be used of the COW device."""

    rate: float  # bytes a second, now
    used: Bytes
    saturation: _Saturation
    usual: Growth  # without saturation
    worst: Growth  # for a writer that does not come back

    def until(self, total: Bytes) -> Band | None:
        """Give the seconds until *total* is used, None when nothing grows."""
        if not self.usual.rate:
            return None
        even = self.saturation.even(total) - self.saturation.even(self.used)
        soon = seconds_until(self.worst.at_most, total - self.used)
        likely, late = (seconds_until(of, even) for of in (self.usual.likely, self.usual.at_least))
        return _band(soon, likely, late)

    def after(self, ahead: Band) -> Band:
        """Give what is used after so many seconds."""
        even = self.saturation.even(self.used)
        low = self.saturation.used(even + self.usual.at_least(ahead.low))
        likely = self.saturation.used(even + self.usual.likely(ahead.likely))
        if math.isinf(ahead.high):
            high = math.inf if self.usual.rate else likely
        else:
            high = self.used + self.worst.at_most(ahead.high)
        return _band(low, likely, self.saturation.capped(high))


class Forecast:
    """Follows one copy; the clock is the caller's (monotonic seconds)."""

    def __init__(self, *, most: Bytes | None = None) -> None:
        """*most*: what can be used of the COW device at most (`geometry.never_overflow`)."""
        self._most = most
        self._saturation = _Saturation(most)
        self._fill = Curve()  # of what is used
        self._even = Curve()  # without saturation
        self._copy = Curve()
        self._last: float | None = None
        self._usual: float | None = None  # seconds from one word to the next
        self._used: Bytes | None = None
        self._done = Bytes(0)
        self._moved = 0.0  # when, in watched seconds
        self._moves = 0

    def add(self, now: float, *, used: Bytes | None, done: Bytes) -> None:
        """Note what is used of the COW device, None where there is none, and what is copied."""
        passed = 0.0 if self._last is None else max(now - self._last, 0.0)
        if passed > 0 and not self._is_gap(passed):
            if used is not None and self._used is not None:
                even = self._saturation.even
                self._fill.grow(passed, float(max(used - self._used, 0)))
                self._even.grow(passed, max(even(used) - even(self._used), 0.0))
            self._copy.grow(passed, float(max(done - self._done, 0)))
            if done > self._done:
                self._moved = self._copy.seconds
                self._moves += 1
        if self._last is None or now > self._last:
            self._last = now
        self._used, self._done = used, done

    def _is_gap(self, passed: float) -> bool:
        """Tell whether *passed* seconds without a word say nothing of any rate."""
        usual = self._usual
        self._usual = passed if usual is None else usual + (passed - usual) / 8
        if passed <= _GAP:
            return False
        return usual is None or passed > _GAP_TIMES * usual or passed > _LONGEST

    def outlook(self, *, total: Bytes | None, size: Bytes) -> Outlook:
        """Look ahead; *total* is the size of the COW device now, *size* what is to be copied."""
        done = self._until_done(size)
        fill = self._filling(done.likely if done is not None else self._copy.seconds)
        full = self._until_full(total, fill)
        needed = None
        if fill is not None and done is not None:
            needed = fill.after(done)
        elif self._used is not None and done == _NOW:
            needed = Band(self._used, self._used, self._used)
        return Outlook(
            full=full,
            done=done,
            needed=needed,
            fill_rate=fill.rate if fill is not None else 0.0,
            first=self._first(full, done, total),
        )

    def _filling(self, ahead: float) -> _Fill | None:
        """Look *ahead* seconds ahead; None when it was not watched for long enough."""
        if self._used is None or not self._even.known:
            return None
        usual, worst = self._even.growth(ahead), self._fill.growth(ahead)
        rate = usual.rate * self._saturation.left(self._used)
        return _Fill(rate, self._used, self._saturation, usual, worst)

    def _until_done(self, size: Bytes) -> Band | None:
        left = size - self._done
        if left <= 0:
            return _NOW
        if not self._copy.known or not self._copy.value or self._is_paused():
            return None
        ahead = left / self._copy.mean(self._copy.seconds)
        growth = self._copy.growth(ahead)
        kinds = (growth.at_most, growth.likely, growth.at_least)
        return _band(*(seconds_until(kind, left) for kind in kinds))

    def _is_paused(self) -> bool:
        usual = self._moved / max(self._moves, 1)
        return self._copy.seconds - self._moved > max(_STILL, _STILL_TIMES * usual)

    def _never_fills(self, total: Bytes | None) -> bool:
        return total is None or (self._most is not None and total >= self._most)

    def _until_full(self, total: Bytes | None, fill: _Fill | None) -> Band | None:
        if total is not None and self._used is not None and self._used >= total:
            return _NOW
        if total is None or self._never_fills(total) or fill is None:
            return None
        return fill.until(total)

    def _first(self, full: Band | None, done: Band | None, total: Bytes | None) -> First:
        if full == _NOW:
            return First.FULL
        if self._never_fills(total) or done == _NOW:
            return First.DONE
        if not self._fill.known or not self._copy.known:
            return First.UNKNOWN
        if done is None:
            return First.FULL if full is not None and self._is_paused() else First.UNKNOWN
        if full is None or done.high < full.low:
            return First.DONE
        return First.FULL if full.high < done.low else First.UNSURE


def _band(low: float, likely: float, high: float) -> Band:
    likely = min(likely, AGES)  # finite, as there is a growth; JSON has no infinity
    return Band(min(low, likely), likely, max(likely, high))
