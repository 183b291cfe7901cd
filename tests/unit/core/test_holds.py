"""All holds of a job: counted into bounds that are the same for ever."""

from __future__ import annotations

import pytest

from dmcopy.core.holds import BOUNDS, Holds, together


def test_each_hold_is_counted_in_the_first_bound_that_is_not_below_it() -> None:
    holds = Holds()
    for seconds in (0.0, 0.0005, 0.0006, 2.5, 11.0):
        holds.add(seconds)
    told = holds.as_json()
    assert told is not None
    assert told["counts"] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert len(told["counts"]) == len(BOUNDS) + 1
    assert (told["count"], told["last_seconds"], told["max_seconds"]) == (5, 11.0, 11.0)
    assert told["sum_seconds"] == pytest.approx(13.5011)


def test_no_hold_is_told_as_none() -> None:
    assert Holds().as_json() is None
    assert together([None, None]) is None


def test_several_jobs_are_summed_up_with_the_worst_quantile() -> None:
    one, other = Holds(), Holds()
    one.add(0.001)
    other.add(0.2)
    other.add(0.02)
    told = together([one.as_json(), None, other.as_json()])
    assert told is not None
    assert (told["count"], told["last_seconds"], told["max_seconds"]) == (3, None, 0.2)
    assert told["sum_seconds"] == pytest.approx(0.221)
    assert sum(told["counts"]) == 3
    assert told["p99_seconds"] == pytest.approx(0.2, rel=0.06)
