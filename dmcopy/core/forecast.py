"""When will the COW device be full, when will the copy be done, and which comes first?

Nothing here knows a device or a clock: `Forecast.add` is told what progress says, and keeps of it
how much two quantities (what is used of the COW device, what is copied) had grown at the ends of
blocks of 0.5, 1, 2, 4 ... seconds, the last 32 of each width.  That is little memory for any
number of days, and answers three questions of each quantity:

* the likely rate: the mean over as much of the past as is to be foretold; after a change that
  lasts (`_Curve.change`) what came since counts, and what was before counts for a few seconds;
* how much it may grow in the next *t* seconds: what it grew at most, and at least, in any of
  the blocks of that width, so that a burst counts for all that it can do soon and for its share
  in the long run.  Where no block is that wide the excess over the mean grows with the root of
  the time, as for blocks that know nothing of each other;
* whether the rate has gone up or down all along: then it may go on so for as long as it did.

A chunk is saved once: a writer that hits chunks at random meets ever more that are saved.  The
used space is followed as what it would be without that (`_Saturation`), which for such a
writer grows evenly.  One that never comes back to a chunk fills the device sooner, one that
keeps to a few chunks later; the low and the high end of a band are for these.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from dmcopy.units import Bytes

_BLOCK: Final = 0.5  # seconds, the narrowest
_KEPT: Final = 32  # blocks of each width
_FEWEST: Final = 4  # blocks that a statement is made of
_LEAST_WINDOW: Final = 30.0  # seconds of the past, for a rate
_LASTING: Final = 6.0  # seconds; what is shorter is a burst, or a pause
_CLEAR: Final = 1.25  # a change is one by so much
_BEFORE: Final = 4.0  # seconds that the rate before a change still counts for
_DOUBT: Final = 1.15  # a band is as wide as that where all blocks are equal
_FEW: Final = 2.0  # the extremes of a few blocks are less than the true ones by about that
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


class _Change(NamedTuple):
    at: float  # watched seconds
    value: float  # at that time
    before: float  # the rate until then


class _Growth(NamedTuple):
    """How much a quantity may grow: the least and the most in each of some times."""

    rate: float
    widths: Sequence[float]  # seconds, ascending
    least: Sequence[float]  # ascending
    most: Sequence[float]  # ascending

    def at_least(self, seconds: float) -> float:
        """Give the growth in *seconds* that is to be expected at least."""
        if seconds <= self.widths[-1]:
            return _interpolated(seconds, self.widths, self.least)
        slope = self.rate / _DOUBT
        return slope * seconds - self._short() * math.sqrt(seconds / self.widths[-1])

    def at_most(self, seconds: float) -> float:
        """Give the growth in *seconds* that is to be expected at most."""
        if seconds <= self.widths[-1]:
            return _interpolated(seconds, self.widths, self.most)
        if math.isinf(seconds):
            return math.inf if self.rate else 0.0
        slope = self.rate * _DOUBT
        return slope * seconds + self._excess() * math.sqrt(seconds / self.widths[-1])

    def soonest(self, amount: float) -> float:
        """Invert `at_most`: the seconds until it has grown by *amount*, at the earliest."""
        if amount <= self.most[-1]:
            return _interpolated(amount, self.most, self.widths)
        return _root(self.rate * _DOUBT, self._excess() / math.sqrt(self.widths[-1]), amount)

    def latest(self, amount: float) -> float:
        """Invert `at_least`; infinite when it need never happen."""
        if amount <= self.least[-1]:
            return _interpolated(amount, self.least, self.widths)
        return _root(self.rate / _DOUBT, -self._short() / math.sqrt(self.widths[-1]), amount)

    def _excess(self) -> float:
        return self.most[-1] - self.rate * _DOUBT * self.widths[-1]

    def _short(self) -> float:
        return self.rate / _DOUBT * self.widths[-1] - self.least[-1]


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Give y at *x* on the line from the origin through the points; *xs* ascend."""
    before_x = before_y = 0.0
    for at, y in zip(xs, ys, strict=True):
        if x <= at:
            share = (x - before_x) / (at - before_x) if at > before_x else 1.0
            return before_y + share * (y - before_y)
        before_x, before_y = at, y
    raise AssertionError("the caller looks at what is beyond the last")


def _root(slope: float, root: float, amount: float) -> float:
    """Solve ``slope * t + root * sqrt(t) == amount`` for the larger t."""
    if slope <= 0:
        return math.inf
    return ((math.sqrt(root * root + 4 * slope * amount) - root) / (2 * slope)) ** 2


class _Curve:
    """Something that only grows, as it was at the ends of blocks of time."""

    def __init__(self) -> None:
        self.seconds = 0.0  # watched
        self.value = 0.0
        self._count = 0  # narrowest blocks that ended
        self._levels: list[deque[float]] = []

    @property
    def known(self) -> bool:
        """Whether it was watched for long enough."""
        return self._count >= _FEWEST

    def grow(self, seconds: float, amount: float) -> None:
        """Note that it grew evenly by *amount*."""
        start, value = self.seconds, self.value
        self.seconds += seconds
        self.value += amount
        while (end := (self._count + 1) * _BLOCK) <= self.seconds:
            self._count += 1
            share = (end - start) / seconds
            self._end_block(value + share * amount)

    def _end_block(self, value: float) -> None:
        level = 0
        while self._count % (1 << level) == 0:
            if level == len(self._levels):
                self._levels.append(deque([0.0], maxlen=_KEPT + 1))
            self._levels[level].append(value)
            level += 1

    def _width(self, level: int) -> float:
        return _BLOCK * (1 << level)

    def _end(self, level: int) -> float:
        """Give the time at which the last block of a level ended."""
        return (self._count >> level) * self._width(level)

    def _grown(self, level: int) -> list[float]:
        """Give the growth in each block that is kept, the oldest first."""
        return [after - before for before, after in pairwise(self._levels[level])]

    def mean(self, window: float) -> float:
        """Give the rate over the last *window* seconds, or a little more."""
        for level, ends in enumerate(self._levels):
            start = self._end(level) - (len(ends) - 1) * self._width(level)
            if start <= max(self.seconds - window, 0.0):
                behind = int((self._end(level) - (self.seconds - window)) / self._width(level)) + 1
                behind = min(behind, len(ends) - 1)
                start = self._end(level) - behind * self._width(level)
                return (self.value - ends[-1 - behind]) / (self.seconds - start)
        return 0.0

    def change(self) -> _Change | None:
        """Find the last time after which all was more, or all was less, than ever before.

        It must have lasted: a burst is no change, nor is one that is as long as earlier ones.
        """
        for level in range(len(self._levels)):
            width, grown = self._width(level), self._grown(level)
            most = list(accumulate(grown, max))
            least = list(accumulate(grown, min))
            high = low = grown[-1]
            for recent in range(1, len(grown) - _FEWEST + 1):
                high, low = max(high, grown[-recent]), min(low, grown[-recent])
                before = len(grown) - recent
                more = low > _CLEAR * most[before - 1]
                less = high * _CLEAR < least[before - 1]
                if not (more or less) or recent < 3 or recent * width < _LASTING:
                    continue
                at, value = self._end(level) - recent * width, self._levels[level][-1 - recent]
                rate = (self._levels[level][-1] - value) / (recent * width)
                if self._is_new(rate, at, recent * width / 2, more=more):
                    return _Change(at, value, sum(grown[:before]) / (before * width))
        return None

    def _is_new(self, rate: float, at: float, longest: float, *, more: bool) -> bool:
        """Tell whether no block before *at*, nearly *longest* wide, had such a *rate*."""
        level = min(int(math.log2(longest / _BLOCK)), len(self._levels) - 1)
        width, end = self._width(level), self._end(level)
        grown = self._grown(level)
        rates = [
            one / width for number, one in enumerate(reversed(grown)) if end - number * width <= at
        ]
        if not rates:
            return True
        return rate > _CLEAR * max(rates) if more else rate * _CLEAR < min(rates)

    def rate(self, ahead: float) -> float:
        """Give the likely rate for the next *ahead* seconds."""
        window = max(ahead, _LEAST_WINDOW)
        change = self.change()
        if change is not None and self.seconds - change.at < window:
            since = self.seconds - change.at
            return (self.value - change.value + change.before * _BEFORE) / (since + _BEFORE)
        return self.mean(window) or self.mean(self.seconds)

    def growth(self, rate: float) -> _Growth:
        """Give how much it may grow, if *rate* is the likely one."""
        widths: list[float] = []
        least: list[float] = []
        most: list[float] = []
        for level in range(len(self._levels)):
            grown, width = self._grown(level), self._width(level)
            if len(grown) < _FEWEST:
                break
            widths.append(width)
            usual = rate * width
            low, high = min(grown), max(grown)
            least.append(max([min(low, usual / _DOUBT), *least[-1:]]))
            most.append(max([high, usual * _DOUBT, *most[-1:]]))
        return _Growth(rate, widths, least, most)


class _Saturation:
    """Used space of a COW device, and what it would be if no chunk were ever hit twice.

    For writes that hit all chunks alike d(used)/dt is proportional to what is not saved.
    """

    def __init__(self, most: Bytes | None) -> None:
        self._most = most

    def left(self, used: float) -> float:
        """Give the share of writes that still need space."""
        return 1.0 if self._most is None else max(1.0 - used / self._most, 1e-9)

    def even(self, used: float) -> float:
        """Give what would be used without saturation."""
        return used if self._most is None else -self._most * math.log(self.left(used))

    def used(self, even: float) -> float:
        """Invert `even`."""
        return even if self._most is None else -self._most * math.expm1(-even / self._most)

    def capped(self, used: float) -> float:
        """Give *used*, or what can be used at most."""
        return used if self._most is None else min(used, self._most)


class Forecast:
    """Follows one copy; the clock is the caller's (monotonic seconds)."""

    def __init__(self, *, most: Bytes | None = None) -> None:
        """*most*: what can be used of the COW device at most (`geometry.never_overflow`)."""
        self._most = most
        self._saturation = _Saturation(most)
        self._fill = _Curve()
        self._copy = _Curve()
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
                self._fill.grow(passed, max(even(used) - even(self._used), 0.0))
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
        ahead = done.likely if done is not None else self._copy.seconds
        rate = self._fill.rate(ahead) if self._fill.known else 0.0
        growth = self._fill.growth(rate) if self._fill.known else None
        full = self._until_full(total, growth)
        left = self._saturation.left(self._used) if self._used is not None else 1.0
        return Outlook(
            full=full,
            done=done,
            needed=self._needed(done, growth),
            fill_rate=rate * left,
            first=self._first(full, done, total),
        )

    def _until_done(self, size: Bytes) -> Band | None:
        left = size - self._done
        if left <= 0:
            return Band(0.0, 0.0, 0.0)
        if not self._copy.known or not self._copy.value or self._is_paused():
            return None
        ahead = left / self._copy.mean(self._copy.seconds)
        rate = self._copy.rate(ahead)
        growth = self._copy.growth(rate)
        return _band(growth.soonest(left), left / rate, growth.latest(left))

    def _is_paused(self) -> bool:
        usual = self._moved / max(self._moves, 1)
        return self._copy.seconds - self._moved > max(_STILL, _STILL_TIMES * usual)

    def _never_fills(self, total: Bytes | None) -> bool:
        return total is None or (self._most is not None and total >= self._most)

    def _until_full(self, total: Bytes | None, growth: _Growth | None) -> Band | None:
        if total is None or self._used is None:
            return None
        if self._used >= total:
            return Band(0.0, 0.0, 0.0)
        if self._never_fills(total) or growth is None or not growth.rate:
            return None
        saturation, left = self._saturation, total - self._used
        even = saturation.even(total) - saturation.even(self._used)
        soonest = growth.soonest(left / saturation.left(self._used))
        return _band(soonest, even / growth.rate, growth.latest(even))

    def _needed(self, done: Band | None, growth: _Growth | None) -> Band | None:
        if self._used is None or done is None:
            return None
        if growth is None:
            return None if done.high else Band(self._used, self._used, self._used)
        now = self._saturation.even(self._used)
        low = self._saturation.used(now + growth.at_least(done.low))
        likely = self._saturation.used(now + growth.rate * done.likely)
        more = growth.at_most(done.high) * self._saturation.left(self._used)
        return _band(low, likely, self._saturation.capped(self._used + more))

    def _first(self, full: Band | None, done: Band | None, total: Bytes | None) -> First:
        if full is not None and full.high == 0:
            return First.FULL
        if self._never_fills(total) or (done is not None and done.high == 0):
            return First.DONE
        if not self._fill.known or not self._copy.known:
            return First.UNKNOWN
        if done is None:
            return First.UNKNOWN if full is None else First.FULL
        if full is None or done.high < full.low:
            return First.DONE
        return First.FULL if full.high < done.low else First.UNSURE


def _band(low: float, likely: float, high: float) -> Band:
    return Band(min(low, likely), likely, max(likely, high))
