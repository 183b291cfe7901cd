"""Axes: round ticks, in bounds, told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.report.scale import brief, counts, decades, moment, percent, times


@given(before=st.floats(0, 1), span=st.floats(0.01, 1e9))
def test_times_have_some_ticks_in_bounds_that_are_told_apart(before: float, span: float) -> None:
    low = -before * span  # the begin time is on the axis, always
    axis = times(low, low + span)
    texts = [tick.text for tick in axis.ticks]
    assert 1 <= len(texts) <= 8
    assert len(set(texts)) == len(texts)
    assert all(-1e-6 <= (tick.value - low) / span <= 1 + 1e-6 for tick in axis.ticks)


@given(high=st.floats(1e-6, 1e12))
def test_counts_begin_at_0_and_hold_the_largest(high: float) -> None:
    axis = counts(high, lambda value: f"{value:.9g}")
    assert axis.ticks[0].value == 0
    assert axis.ticks[-1].value >= high * (1 - 1e-9)
    assert 3 <= len(axis.ticks) <= 6
    assert axis.share(high) > 0.5


@given(values=st.lists(st.floats(1e-7, 1e4), min_size=1, max_size=9))
def test_decades_hold_all_values(values: list[float]) -> None:
    axis = decades(values)
    assert axis.low <= min(values) * (1 + 1e-9)
    assert axis.high >= max(values) * (1 - 1e-9)
    assert 2 <= len(axis.ticks) <= 7


def test_decades_are_of_the_same_size() -> None:
    axis = decades([0.001, 0.1])
    assert [axis.share(value) for value in (0.0, 0.001, 0.01, 0.1, 1.0)] == pytest.approx(
        [0.0, 0.0, 0.5, 1.0, 1.0]
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000042, "4.2 µs"), (0.000085, "85 µs"), (0.0001, "0.1 ms"), (0.00042, "0.42 ms"),
        (0.0123, "12.3 ms"), (0.214, "214 ms"), (0.9994, "999 ms"), (0.9996, "1 s"),
        (1.25, "1.25 s"), (123.0, "123 s"),
    ],
)  # fmt: skip
def test_short_time_is_told_with_three_figures(seconds: float, text: str) -> None:
    assert brief(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (-0.01, "0.0 s"),
        (-5, "-5.0 s"),
        (9.96, "0:10"),
        (-20.4, "-0:20"),
        (90, "1:30"),
        (3600, "1:00:00"),
    ],
)
def test_time_since_the_begin_time_is_told_as_on_a_clock(seconds: float, text: str) -> None:
    assert moment(seconds) == text


def test_axis_of_a_short_copy_is_in_seconds_throughout() -> None:
    assert [tick.text for tick in times(-0.6, 1.2).ticks] == ["-0.5 s", "0 s", "0.5 s", "1 s"]
    assert [tick.text for tick in times(-20, 120).ticks][:2] == ["0:00", "0:30"]


def test_small_share_is_told_with_a_decimal() -> None:
    assert [percent(share) for share in (0, 0.005, 0.0994, 0.0996, 0.62, 1)] == [
        *("0%", "0.5%", "9.9%", "10%", "62%", "100%")
    ]
