"""Batches are as short as is worth it, and no shorter."""

from __future__ import annotations

import pytest

from dmcopy.core.batch import BatchPace


@pytest.mark.parametrize(
    ("cost", "seconds"), [(0.0, 0.25), (0.001, 0.25), (0.03, 1.0), (0.09, 3.0), (1.0, 5.0)]
)
def test_end_of_a_batch_takes_a_small_share_of_the_time(cost: float, seconds: float) -> None:
    pace = BatchPace(5.0)
    assert pace.seconds == 0.25
    for _ in range(20):
        pace.ended(cost, 1.0)
    assert pace.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("elapsed", "seconds"), [(5.0, 0.25), (50.0, 1.0), (3600.0, 5.0)])
def test_long_copy_is_retired_less_often(elapsed: float, seconds: float) -> None:
    pace = BatchPace(5.0)
    pace.ended(0.0, elapsed)
    assert pace.seconds == pytest.approx(seconds)


def test_longest_batch_is_the_limit_from_the_start() -> None:
    assert BatchPace(0.1).seconds == 0.1
