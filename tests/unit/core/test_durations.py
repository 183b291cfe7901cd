"""Quantiles of many short times, within the 5 % that are promised."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.durations import Durations


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_quantile_is_within_five_percent(times: list[float], share: float) -> None:
    durations = Durations()
    for seconds in times:
        durations.add(seconds)
    exact = sorted(times)[math.ceil(share * len(times)) - 1]
    assert exact * 0.999 <= durations.quantile(share) <= exact * 1.051
    assert durations.most == max(times)
    assert durations.count == len(times)
    assert durations.total == pytest.approx(sum(times))


def test_nothing_has_no_summary() -> None:
    assert Durations().summary() is None
    assert Durations().quantile(0.5) == 0.0


def test_summary_is_median_p99_and_longest() -> None:
    durations = Durations()
    for number in range(1, 1001):
        durations.add(number / 1000)
    median, p99, most = durations.summary() or (0.0, 0.0, 0.0)
    assert median == pytest.approx(0.5, rel=0.06)
    assert p99 == pytest.approx(0.99, rel=0.06)
    assert most == 1.0


def test_room_is_bounded() -> None:
    durations = Durations()
    for number in range(100_000):
        durations.add(number * 0.001)
    assert len(durations._buckets) < 600
