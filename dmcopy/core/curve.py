"""A quantity that only grows: how fast it does, and how much it may grow in a time to come.

`Curve` keeps the value at the ends of blocks of 0.5, 1, 2, 4 ... seconds, the last 128 of each
width: little memory for any number of days.  Of these it makes

* the likely rate: the mean over as much of the past as is to be foretold; after a change that
  lasts (`Curve.change`) what came since counts, and what was before counts for a few seconds;
* `Growth`, how much it may grow in the next *t* seconds: what it grew at most, and at least, in
  any of the blocks of that width, so that a burst counts for all that it can do soon and for its
  share in the long run.  Where no block is that wide the excess over the mean grows with the
  root of the time, as for blocks that know nothing of each other.  A rate that has gone up
  or down all along may go on so.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, combinations, pairwise
from typing import Final, NamedTuple

_BLOCK: Final = 0.5  # seconds, the narrowest
_KEPT: Final = 128  # blocks of each width: a minute of half seconds, for bursts may be so rare
_FEWEST: Final = 4  # blocks that a statement is made of
_LEAST_WINDOW: Final = 30.0  # seconds of the past, for a rate
_LASTING: Final = 4.0  # seconds; what is shorter is a burst, or a pause
_CLEAR: Final = 1.25  # a change is one by so much
_BEFORE: Final = 4.0  # seconds that the rate before a change still counts for
_DOUBT: Final = 1.1  # a band is as wide as that where all blocks are equal
_UNSEEN: Final = 3.0  # seconds of a pause, or of twice the rate, that may just not have been seen
_LEVELS_ABOVE_TREND: Final = 5  # of a level with 16 to 31 blocks: all that was watched
_SURE: Final = 2.5  # standard deviations
AGES: Final = 1e9  # seconds; what comes later never does
_HALVINGS: Final = 40


class Change(NamedTuple):
    at: float  # watched seconds
    value: float  # at that time
    before: float  # the rate until then


class Growth(NamedTuple):
    """How much a quantity may grow: what is likely, and the least and the most there was."""

    rate: float  # now
    slow: float  # it may be that in the long run, or...
    fast: float
    trend: float  # how fast the rate changes, a second; 0: it does not, all along
    span: float  # seconds for which it did
    widths: Sequence[float]  # of blocks; seconds, ascending
    least: Sequence[float]  # growth in such a block; ascending
    most: Sequence[float]

    def likely(self, seconds: float) -> float:
        """Give the growth in *seconds* that is likely.

        A rate that rises does so for half as long again; one that falls does so ever more
        slowly, as that of writers with favourites does.
        """
        if self.trend >= 0:
            return self.rate * seconds + self._rise(seconds, self.span / 2)
        scale = -self.trend / self.rate
        return self.rate / scale * math.log1p(scale * seconds)

    def at_most(self, seconds: float) -> float:
        """Give the growth in *seconds* that is to be expected at most."""
        if seconds <= self.widths[-1]:
            seen = _interpolated(seconds, self.widths, self.most)
        else:
            excess = self.most[-1] - self.fast * self.widths[-1]
            seen = self.fast * seconds + excess * math.sqrt(seconds / self.widths[-1])
        return seen + self._rise(seconds, self.span)

    def at_least(self, seconds: float) -> float:
        """Give the growth in *seconds* that is to be expected at least."""
        if seconds <= self.widths[-1]:
            seen = _interpolated(seconds, self.widths, self.least)
        else:
            lack = self.slow * self.widths[-1] - self.least[-1]
            seen = self.slow * seconds - lack * math.sqrt(seconds / self.widths[-1])
        if self.trend >= 0:
            return seen
        end = self.rate * self.rate / -self.trend  # the rate falls as much with all that comes
        return -end * math.expm1(-seen / end)

    def _rise(self, seconds: float, span: float) -> float:
        rising = min(seconds, span)
        return max(self.trend, 0.0) * rising * (seconds - rising / 2)


def seconds_until(growth: Callable[[float], float], amount: float) -> float:
    """Give the seconds until *growth* is *amount*; infinite when that is more than ages."""
    high = _BLOCK
    while growth(high) < amount:
        high *= 2
        if high > AGES:
            return math.inf
    low = high / 2 if high > _BLOCK else 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if growth(middle) < amount else (low, middle)
    return high


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Give y at *x* on the line from the origin through the points; *xs* ascend."""
    before_x = before_y = 0.0
    for at, y in zip(xs, ys, strict=True):
        if x <= at:
            return before_y + (x - before_x) / (at - before_x) * (y - before_y)
        before_x, before_y = at, y
    raise AssertionError("the caller looks at what is beyond the last")


def _splits(grown: Sequence[float], fewest: int) -> list[int]:
    """Give after how many of the last blocks, *fewest* or more, each is clearly above, or each
    clearly below, all that were before them.
    """
    most, least = list(accumulate(grown, max)), list(accumulate(grown, min))
    high, low = list(accumulate(reversed(grown), max)), list(accumulate(reversed(grown), min))
    return [
        recent
        for recent in range(fewest, len(grown) - _FEWEST + 1)
        if low[recent - 1] > _CLEAR * most[-1 - recent]
        or high[recent - 1] * _CLEAR < least[-1 - recent]
    ]


def _trend(grown: Sequence[float], width: float) -> float:
    """Give how fast the rate rises or falls from block to block; 0.0 when it is not sure.

    Kendall's test, and the same sign in either half: neither a burst nor a step is a trend.
    """
    count, half = len(grown), len(grown) // 2
    score = _score(grown)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    parts = (score, _score(grown[:half]), _score(grown[half:]))
    if abs(score) < _SURE * deviation or min(parts) <= 0 <= max(parts):
        return 0.0
    middle = (count - 1) / 2
    slope = sum((number - middle) * one for number, one in enumerate(grown))
    return slope / sum((number - middle) ** 2 for number in range(count)) / width**2


def _score(values: Sequence[float]) -> int:
    return sum((after > before) - (after < before) for before, after in combinations(values, 2))


class Curve:
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

    def change(self) -> Change | None:
        """Find the last time after which all was more, or all was less, than ever before.

        It must have lasted: a burst is no change, nor is one that is as long as earlier ones.
        """
        for level, ends in enumerate(self._levels):
            width, grown = self._width(level), self._grown(level)
            fewest = max(3, math.ceil(_LASTING / width))
            for recent in _splits(grown, fewest):
                at, value = self._end(level) - recent * width, ends[-1 - recent]
                rate = (ends[-1] - value) / (recent * width)
                before = (value - ends[0]) / ((len(grown) - recent) * width)
                if self._is_new(rate, at, recent * width / 2, more=rate > before):
                    return Change(at, value, before)
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

    def growth(self, ahead: float) -> Growth:
        """Give how much it may grow, for someone who wants to know of the next *ahead* seconds."""
        mean = self.mean(max(ahead, _LEAST_WINDOW)) or self.mean(self.seconds)
        trend, span = self._trend()
        rate = self._rate_now(mean, trend, span, max(ahead, _LEAST_WINDOW))
        doubt = _DOUBT + _UNSEEN / self.seconds
        slow, fast = min(rate, mean) / doubt, max(rate, mean) * doubt
        widths: list[float] = []
        least: list[float] = []
        most: list[float] = []
        for level in range(len(self._levels)):
            grown, width = self._grown(level), self._width(level)
            if len(grown) < _FEWEST:
                break
            widths.append(width)
            least.append(max([min(min(grown) / _DOUBT, slow * width), *least[-1:]]))
            most.append(max([max(grown) * _DOUBT, fast * width, *most[-1:]]))
        return Growth(rate, slow, fast, trend, span, widths, least, most)

    def _rate_now(self, mean: float, trend: float, span: float, window: float) -> float:
        if trend:
            lately = self.mean(span / 4)
            return lately + max(trend, 0.0) * span / 8 or mean
        change = self.change()
        if change is None or self.seconds - change.at >= window:
            return mean
        since = self.seconds - change.at
        return (self.value - change.value + change.before * _BEFORE) / (since + _BEFORE)

    def _trend(self) -> tuple[float, float]:
        """Give how fast the rate changes, a second, and for how long it did."""
        level = max(len(self._levels) - _LEVELS_ABOVE_TREND, 0)
        grown, width = self._grown(level), self._width(level)
        return _trend(grown, width), len(grown) * width
