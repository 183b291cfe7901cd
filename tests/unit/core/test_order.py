"""Which areas go first: those that stand out, as a few clusters, and none by chance."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.extent import Extent, merge
from dmcopy.core.order import Heat
from dmcopy.units import Sectors

AREA = Sectors(8192)
AREAS = 1000
LENGTH = Sectors(AREAS * AREA - 100)
WHOLE = [Extent(Sectors(0), LENGTH)]


def _area(number: int, count: int = 1) -> Extent:
    return Extent.between(Sectors(number * AREA), Sectors(min((number + count) * AREA, LENGTH)))


def _heat(counts: dict[int, float]) -> Heat:
    heat = Heat(LENGTH, AREA)
    heat.add(0.0, counts)
    return heat


def test_nothing_is_hot_where_nothing_is_written() -> None:
    assert Heat(LENGTH, AREA).clusters(WHOLE) == []
    assert _heat({5: 100.0}).clusters([]) == []


@pytest.mark.parametrize("writes", [50, 1000, 20_000, 1_000_000])
def test_nothing_stands_out_of_uniform_writes(writes: int) -> None:
    rng = random.Random(7)
    counts: dict[int, float] = {}
    for _ in range(min(writes, 50_000)):
        area = rng.randrange(AREAS)
        counts[area] = counts.get(area, 0) + writes / min(writes, 50_000)
    found = _heat(counts).clusters(WHOLE)
    assert sum(extent.length for extent in found) < LENGTH / 50


@pytest.mark.parametrize("writes", [300, 5000])
def test_tenth_that_gets_nine_of_ten_writes_goes_first(writes: int) -> None:
    rng = random.Random(3)
    counts: dict[int, float] = {}
    for _ in range(writes):
        area = rng.randrange(400, 500) if rng.random() < 0.9 else rng.randrange(AREAS)
        counts[area] = counts.get(area, 0) + 1
    found = _heat(counts).clusters(WHOLE)
    hot = _area(400, 100)
    inside = sum(part.length for one in found if (part := one.clip(hot)) is not None)
    assert inside > (0.75 if writes < 1000 else 0.98) * hot.length
    assert sum(extent.length for extent in found) < 1.4 * hot.length


def test_hotter_cluster_comes_first_and_neighbours_are_joined() -> None:
    found = _heat({10: 50, 12: 50, 600: 900, 601: 800}).clusters(WHOLE)
    assert found == [_area(600, 2), _area(10, 3)]


def test_last_area_is_cut_at_the_end_of_the_image() -> None:
    assert _heat({AREAS - 1: 99}).clusters(WHOLE) == [_area(AREAS - 1)]


def test_what_is_copied_is_not_compared() -> None:
    heat = _heat({3: 1e9, 700: 60})
    left = [Extent.between(Sectors(4 * AREA), LENGTH)]
    assert heat.clusters(left) == [_area(700)]


def test_old_writes_count_less() -> None:
    heat = _heat({3: 100})
    heat.add(600.0, {700: 60})
    assert heat.clusters(WHOLE)[0] == _area(700)


@given(
    st.dictionaries(st.integers(0, AREAS - 1), st.floats(0, 1e6), max_size=60),
    st.lists(st.tuples(st.integers(0, AREAS - 1), st.integers(1, 50)), max_size=20),
)
def test_clusters_are_few_disjoint_and_in_the_image(
    counts: dict[int, float], gaps: list[tuple[int, int]]
) -> None:
    left = merge(_area(start, length) for start, length in gaps)
    found = _heat(counts).clusters(left)
    assert len(found) <= 7
    assert sorted(found) == sorted(merge(found))
    for extent in found:
        assert 0 <= extent.start < extent.end <= LENGTH
        assert extent.start % AREA == 0
        assert any(extent.clip(one) is not None for one in left)
