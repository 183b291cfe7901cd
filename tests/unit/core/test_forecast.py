"""Whether the COW device or the copy comes first: what was recorded, and what may come."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.series import Fill, Series, load_all
from dmcopy.core.forecast import Band, First, Forecast, Outlook
from dmcopy.units import GIB, KIB, MIB, Bytes

SERIES = load_all()
FILLS = [(series, fill) for series in SERIES for fill in series.fills()]
WHOLE = [series for series in SERIES if series.whole]
SHARES = (0.25, 0.5, 0.75)
WATCHED = 5.0  # seconds without which nothing is promised
CHANGED = {"step": 27.0, "files": 22.0}  # seconds; nobody could know before
UNFORESEEN = {("growing", 0.25)}  # after 10 s with a few writes: that it would become so many
TICK = 0.2

ASKED = [
    (series, fill, share)
    for series, fill in FILLS
    for share in SHARES
    if not 0 <= share * fill.at - CHANGED.get(series.name, math.inf) < WATCHED
]


def _id(value: object) -> str:
    if isinstance(value, Series):
        return value.name
    return f"{value.total >> 20}MiB" if isinstance(value, Fill) else str(value)


def _moments(series: Series, end: float) -> Iterator[tuple[float, Forecast]]:
    forecast = Forecast(most=series.most)
    for point in series.points:
        if point.at >= end:
            return
        forecast.add(point.at, used=point.used, done=point.done)
        yield point.at, forecast


def _watch(
    forecast: Forecast,
    used: Callable[[float], float],
    *,
    seconds: float,
    start: float = 0.0,
    pace: float = MIB,
) -> None:
    """Add what is there five times a second; *used* and *pace* are in bytes, and a second."""
    for number in range(round(seconds / TICK) + 1):
        at = start + number * TICK
        forecast.add(at, used=Bytes(int(used(at))), done=Bytes(int(pace * at)))


def _full(forecast: Forecast, total: int, *, size: int = GIB) -> Band:
    band = forecast.outlook(total=Bytes(total), size=Bytes(size)).full
    assert band is not None
    return band


# recorded


def test_there_are_series_of_every_kind() -> None:
    names = {series.name for series in SERIES}
    assert names >= {
        "bursts", "files", "growing", "idle", "overflow", "step", "uniform", "zipf",
    }  # fmt: skip
    assert all(200 <= len(series.points) <= 600 for series in SERIES)


@pytest.mark.parametrize(("series", "fill", "share"), ASKED, ids=_id)
def test_full_is_when_it_was_foretold(series: Series, fill: Fill, share: float) -> None:
    forecast, seen = series.until(share * fill.at)
    band = _full(forecast, fill.total, size=series.size)
    left = fill.at - seen.at
    if seen.at < CHANGED.get(series.name, 0):
        assert band.low > left, "or the series shows nothing"
    elif (series.name, share) in UNFORESEEN:
        assert band.low / 4 <= left <= band.high
    else:
        assert band.low <= left <= band.high
        assert left / 2 <= band.likely <= 2 * left


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("series", WHOLE, ids=_id)
def test_copy_is_done_when_it_was_foretold(series: Series, share: float) -> None:
    forecast, seen = series.until(share * series.done_at)
    band = forecast.outlook(total=seen.total, size=series.size).done
    assert band is not None
    left = series.done_at - seen.at
    assert band.low <= left <= band.high
    assert band.likely == pytest.approx(left, rel=0.1)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("series", WHOLE, ids=_id)
def test_as_much_is_needed_as_was_foretold(series: Series, share: float) -> None:
    forecast, seen = series.until(share * series.done_at)
    band = forecast.outlook(total=seen.total, size=series.size).needed
    assert band is not None
    if seen.at < CHANGED.get(series.name, 0) + WATCHED:
        assert band.high < series.points[-1].used, "or the series shows nothing"
    else:
        assert band.low <= series.points[-1].used <= band.high


@pytest.mark.parametrize(("series", "fill"), FILLS, ids=_id)
def test_no_one_is_told_that_it_lasts_before_it_is_full(series: Series, fill: Fill) -> None:
    for at, forecast in _moments(series, fill.at):
        if at > max(WATCHED, CHANGED.get(series.name, 0) + WATCHED, fill.at - 15):
            first = forecast.outlook(total=fill.total, size=series.size).first
            assert first in (First.FULL, First.UNSURE), f"{first} {fill.at - at:.1f} s before"


@pytest.mark.parametrize("series", WHOLE, ids=_id)
def test_no_one_is_warned_where_it_cannot_fill(series: Series) -> None:
    for _, forecast in _moments(series, series.ended):
        outlook = forecast.outlook(total=series.points[0].total, size=series.size)
        assert (outlook.full, outlook.first) == (None, First.DONE)


@pytest.mark.parametrize("series", WHOLE, ids=_id)
def test_twice_of_what_is_used_in_the_end_is_not_called_too_little(series: Series) -> None:
    for at, forecast in _moments(series, series.ended):
        if at > 20:
            total = Bytes(2 * series.points[-1].used)
            assert forecast.outlook(total=total, size=series.size).first is not First.FULL


# rates


def test_steady_writer_that_never_comes_back_fills_when_it_does() -> None:
    forecast = Forecast()
    _watch(forecast, lambda at: 2 * MIB * at, seconds=60)
    outlook = forecast.outlook(total=Bytes(220 * MIB), size=Bytes(GIB))
    assert outlook.full is not None
    assert outlook.full.likely == pytest.approx(50, rel=0.01)
    assert 40 < outlook.full.low < 46
    assert 54 < outlook.full.high < 60
    assert outlook.fill_rate == pytest.approx(2 * MIB, rel=0.01)
    assert outlook.first is First.FULL


def test_random_writer_meets_chunks_that_are_saved() -> None:
    most = GIB
    forecast = Forecast(most=Bytes(most))
    scale = 100.0
    _watch(forecast, lambda at: most * -math.expm1(-at / scale), seconds=100)
    at_200 = most * -math.expm1(-200 / scale)
    outlook = forecast.outlook(total=Bytes(int(at_200)), size=Bytes(GIB))
    assert outlook.full is not None
    assert outlook.full.likely == pytest.approx(100, rel=0.02)
    assert outlook.full.low < 70, "one that never comes back is sooner"
    assert outlook.fill_rate == pytest.approx(most / scale * math.exp(-1), rel=0.02)


def test_cow_device_that_is_large_enough_never_fills() -> None:
    forecast = Forecast(most=Bytes(100 * MIB))
    _watch(forecast, lambda at: MIB * at, seconds=10)
    outlook = forecast.outlook(total=Bytes(100 * MIB), size=Bytes(GIB))
    assert (outlook.full, outlook.first) == (None, First.DONE)
    assert outlook.needed is not None
    assert outlook.needed.high == 100 * MIB


def test_one_burst_makes_no_alarm() -> None:
    forecast = Forecast()

    def used(at: float) -> float:  # 3 s of ten times as much
        return MIB * (at + 9 * min(max(at - 60, 0), 3))

    _watch(forecast, used, seconds=63)
    burst = _full(forecast, int(used(63)) + 600 * MIB)
    assert burst.likely > 300, "600 s at the usual rate, 60 s at that of the burst"
    assert burst.low > 150
    assert _full(forecast, int(used(63)) + 15 * MIB).low < 2, "but another one is foreseen"


def test_burst_as_there_were_before_is_no_change() -> None:
    forecast = Forecast()

    def used(at: float) -> float:  # 8 s of 10 MiB a second, 82 s of nothing
        return 10 * MIB * (8 * (at // 90) + min(at % 90, 8))

    _watch(forecast, used, seconds=450 + 8)
    mean = used(450) / 450
    assert _full(forecast, int(used(458) + 1000 * mean)).likely == pytest.approx(1000, rel=0.25)


def test_rare_burst_is_not_forgotten_before_the_next() -> None:
    forecast = Forecast()

    def used(at: float) -> float:  # 60 MiB at once, as when the kernel writes back
        return 60 * MIB * ((at + 5) // 45)

    _watch(forecast, used, seconds=219)
    assert _full(forecast, int(used(219)) + 55 * MIB).low < 1


@pytest.mark.parametrize("quiet", [20, 60, 600])
def test_growth_that_lasts_is_seen_within_seconds(quiet: int) -> None:
    forecast = Forecast()

    def used(at: float) -> float:
        return MIB * (at / 10 + 10 * max(at - quiet, 0))

    _watch(forecast, used, seconds=quiet + 8)
    band = _full(forecast, int(used(quiet + 8)) + 1000 * MIB)
    assert band.low < 150, "100 s at the new rate, more than an hour at the old one"
    assert band.likely < 200


def test_rate_that_rises_goes_on_to() -> None:
    forecast = Forecast()

    def used(at: float) -> float:
        return 50 * KIB * at * at

    _watch(forecast, used, seconds=60)
    band = _full(forecast, int(used(90)))
    assert band.low <= 30 <= band.high
    assert band.likely < 36, "more than 37 s at the rate of now"


def test_load_that_ended_is_forgotten_slowly() -> None:
    forecast = Forecast()
    _watch(forecast, lambda at: MIB * min(at, 60), seconds=70)
    soon = _full(forecast, 160 * MIB)
    _watch(forecast, lambda _: MIB * 60, seconds=290, start=70.2)
    later = _full(forecast, 160 * MIB)
    assert 200 < soon.likely < 1000
    assert soon.low < 110, "it may begin again"
    assert later.likely > soon.likely
    assert later.low > soon.low


def test_what_does_not_grow_never_fills() -> None:
    forecast = Forecast()
    _watch(forecast, lambda _: 4096, seconds=10)
    outlook = forecast.outlook(total=Bytes(MIB), size=Bytes(GIB))
    assert outlook.full is None
    assert outlook.needed == Band(4096, 4096, 4096)
    assert (outlook.fill_rate, outlook.first) == (0.0, First.DONE)


def test_full_is_full() -> None:
    forecast = Forecast()
    forecast.add(0.0, used=Bytes(MIB), done=Bytes(0))
    outlook = forecast.outlook(total=Bytes(MIB), size=Bytes(GIB))
    assert (outlook.full, outlook.first) == (Band(0, 0, 0), First.FULL)


def test_device_that_grows_lasts_longer() -> None:
    forecast = Forecast()
    _watch(forecast, lambda at: 2 * MIB * at, seconds=20)
    size = Bytes(60 * MIB)  # 40 s to go
    assert forecast.outlook(total=Bytes(80 * MIB), size=size).first is First.FULL
    assert forecast.outlook(total=Bytes(120 * MIB), size=size).first is First.UNSURE
    assert forecast.outlook(total=Bytes(240 * MIB), size=size).first is First.DONE


# the copy


def test_nothing_is_known_at_once() -> None:
    forecast = Forecast()
    _watch(forecast, lambda at: MIB * at, seconds=1.2)
    nothing = Outlook(full=None, done=None, needed=None, fill_rate=0.0, first=First.UNKNOWN)
    assert forecast.outlook(total=Bytes(GIB), size=Bytes(GIB)) == nothing


def test_paused_copy_is_never_done() -> None:
    forecast = Forecast()
    _watch(forecast, lambda at: MIB * at, seconds=10, pace=MIB)
    before = forecast.outlook(total=Bytes(GIB), size=Bytes(100 * MIB))
    assert before.first is First.DONE
    _watch(forecast, lambda at: MIB * at, seconds=11, start=10.2, pace=0)
    paused = forecast.outlook(total=Bytes(GIB), size=Bytes(100 * MIB))
    assert (paused.done, paused.needed, paused.first) == (None, None, First.FULL)


def test_copy_that_did_not_move_yet_is_no_alarm() -> None:
    forecast = Forecast()
    _watch(forecast, lambda at: MIB * at, seconds=5, pace=0)
    assert forecast.outlook(total=Bytes(GIB), size=Bytes(GIB)).first is First.UNKNOWN


def test_copy_in_large_steps_is_not_paused() -> None:
    forecast = Forecast()
    for tick in range(899):  # 64 MiB every 12 s; the next one is due
        at = tick * TICK
        forecast.add(at, used=Bytes(0), done=Bytes(int(at / 12) * 64 * MIB))
    band = forecast.outlook(total=Bytes(GIB), size=Bytes(2 * GIB)).done
    assert band is not None
    assert band.likely == pytest.approx(384 - 180, rel=0.15)


def test_copy_that_is_done_is_first() -> None:
    forecast = Forecast()
    _watch(forecast, lambda at: MIB * at, seconds=10)
    outlook = forecast.outlook(total=Bytes(11 * MIB), size=Bytes(10 * MIB))
    assert (outlook.done, outlook.first) == (Band(0, 0, 0), First.DONE)
    assert outlook.needed == Band(10 * MIB, 10 * MIB, 10 * MIB)


def test_without_cow_device_only_the_copy_is_foretold() -> None:
    forecast = Forecast()
    for tick in range(100):
        forecast.add(tick * TICK, used=None, done=Bytes(tick * MIB))
    outlook = forecast.outlook(total=None, size=Bytes(200 * MIB))
    assert outlook.done is not None
    assert outlook.done.likely == pytest.approx(101 * TICK, rel=0.02)
    assert (outlook.full, outlook.needed, outlook.first) == (None, None, First.DONE)


def test_hours_asleep_change_no_rate() -> None:
    awake, slept = Forecast(), Forecast()
    _watch(awake, lambda at: MIB * at, seconds=60)
    _watch(slept, lambda at: MIB * at, seconds=30)
    for number in range(1, 151):
        at = 30 + number * TICK
        slept.add(at + 36_000, used=Bytes(int(MIB * at)), done=Bytes(int(MIB * at)))
    for one, other in zip(_full(awake, GIB), _full(slept, GIB), strict=True):
        assert one == pytest.approx(other, rel=0.02)


def test_rare_words_are_no_gap() -> None:
    forecast = Forecast()
    for minute in range(30):
        forecast.add(60.0 * minute, used=Bytes(minute * MIB), done=Bytes(minute * MIB))
    assert _full(forecast, 59 * MIB).likely == pytest.approx(1800, rel=0.05)


def test_a_day_takes_no_more_memory_than_an_hour() -> None:
    def after(hours: int) -> int:
        forecast = Forecast(most=Bytes(1 << 60))
        for number in range(hours * 360):
            forecast.add(10.0 * number, used=Bytes(number * MIB), done=Bytes(number))
        return len(pickle.dumps(forecast))

    doublings, curves, of_one_number = 5, 3, 10
    assert after(32) <= after(1) + doublings * curves * 129 * of_one_number


# all that may be said

_ADD = st.tuples(
    st.floats(0, 1e7) | st.floats(0, 5),
    st.none() | st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
)


def _check(outlook: Outlook) -> None:
    for band in (outlook.full, outlook.done, outlook.needed):
        if band is not None:
            assert 0 <= band.low <= band.likely <= band.high
            assert band.likely < math.inf, "JSON has no infinity"
    assert 0 <= outlook.fill_rate < math.inf


@given(
    st.none() | st.integers(1, 1 << 41),
    st.lists(_ADD, max_size=60),
    st.none() | st.integers(1, 1 << 42),
    st.integers(0, 1 << 42),
)
def test_bands_are_in_order_whatever_is_added(
    most: int | None,
    adds: list[tuple[float, int | None, int]],
    total: int | None,
    size: int,
) -> None:
    forecast = Forecast(most=Bytes(most) if most is not None else None)
    for now, used, done in adds:
        forecast.add(now, used=Bytes(used) if used is not None else None, done=Bytes(done))
        _check(
            forecast.outlook(total=Bytes(total) if total is not None else None, size=Bytes(size))
        )


@given(
    st.none() | st.integers(1 << 20, 1 << 41),
    st.lists(st.tuples(st.floats(0.05, 20), st.integers(0, 1 << 30)), min_size=8, max_size=60),
    st.lists(st.integers(1, 1 << 42), min_size=2, max_size=8),
)
def test_larger_device_is_never_full_sooner(
    most: int | None, steps: list[tuple[float, int]], totals: list[int]
) -> None:
    forecast = Forecast(most=Bytes(most) if most is not None else None)
    at, used = 0.0, 0
    for seconds, more in steps:
        at, used = at + seconds, used + more
        forecast.add(at, used=Bytes(used), done=Bytes(used))
    last = Band(0, 0, 0)
    for total in sorted(totals):
        full = forecast.outlook(total=Bytes(total), size=Bytes(1 << 42)).full or Band(
            math.inf, math.inf, math.inf
        )
        assert all(after >= before * (1 - 1e-9) for before, after in zip(last, full, strict=True))
        last = full
