"""The simulation of the order: hot first saves less, and the less the longer the copy is."""

from __future__ import annotations

from benchmarks.distribution import DISTRIBUTIONS, HOT_TENTH, UNIFORM
from benchmarks.ordering import share_saved


def test_hot_first_saves_little_of_what_is_clustered_and_half_of_what_is_not() -> None:
    hot = share_saved(DISTRIBUTIONS[HOT_TENTH], 6144, seed=1)
    longer = share_saved(DISTRIBUTIONS[HOT_TENTH], 24576, seed=1)
    assert 0.1 < longer < hot < 0.3
    assert 0.45 < share_saved(DISTRIBUTIONS[UNIFORM], 6144, seed=1) < 0.6
