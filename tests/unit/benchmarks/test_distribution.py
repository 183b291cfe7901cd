"""Where the application of the benchmarks writes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.distribution import (
    DISTRIBUTIONS,
    HOT,
    HOT_TENTH,
    UNIFORM,
    ZIPF,
    all_chunks,
    least_chunks,
)
from benchmarks.writer import places

CHUNKS = 1000
DRAWS = 20_000


def drawn(name: str, seed: int = 1) -> Counter[int]:
    pick = DISTRIBUTIONS[name].picker(CHUNKS, random.Random(seed))
    return Counter(pick() for _ in range(DRAWS))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("chunks", [1, 7, CHUNKS])
def test_every_chunk_has_a_weight(name: str, chunks: int) -> None:
    weights = DISTRIBUTIONS[name].weights(chunks)
    assert len(weights) == chunks
    assert all(weight > 0 for weight in weights)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_only_chunks_of_the_device_are_drawn(name: str) -> None:
    assert set(drawn(name)) <= set(range(CHUNKS))


def test_uniform_goes_everywhere_alike() -> None:
    found = drawn(UNIFORM)
    assert len(found) == CHUNKS
    assert max(found.values()) < 4 * DRAWS / CHUNKS


def test_nine_tenths_of_the_writes_go_to_one_tenth_in_one_piece() -> None:
    found = drawn(HOT_TENTH)
    hot = range(round(HOT * CHUNKS), round((HOT + 0.1) * CHUNKS))
    assert sum(found[chunk] for chunk in hot) / DRAWS == pytest.approx(0.9, abs=0.02)


def test_zipf_is_hottest_at_one_place_and_colder_with_the_distance() -> None:
    weights = DISTRIBUTIONS[ZIPF].weights(CHUNKS)
    hottest = round(HOT * CHUNKS)
    ranked = weights[hottest:] + weights[:hottest]
    assert ranked == sorted(weights, reverse=True)
    assert ranked[0] / ranked[1] == pytest.approx(2**1.2)
    assert drawn(ZIPF).most_common(1)[0][0] == hottest


def test_same_seed_gives_the_same_places() -> None:
    one, two, other = (places(ZIPF, 16 * CHUNKS, seed) for seed in ("a/1", "a/1", "a/2"))
    first = [one() for _ in range(100)]
    assert first == [two() for _ in range(100)]
    assert first != [other() for _ in range(100)]
    assert all(0 <= block < 16 * CHUNKS for block in first)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_retiring_saves_fewer_chunks_and_the_hottest_first_fewest(name: str) -> None:
    one = DISTRIBUTIONS[name]
    hot = least_chunks(one, 1024, 1500, hot_first=True)
    in_order = least_chunks(one, 1024, 1500, hot_first=False)
    assert 0 < hot <= in_order < all_chunks(one, 1024, 1500) < 1024


def test_half_of_few_writes_anywhere_find_the_chunk_retired() -> None:
    one = DISTRIBUTIONS[UNIFORM]
    found = least_chunks(one, 4096, 40, hot_first=False, segment=1)
    assert found / all_chunks(one, 4096, 40) == pytest.approx(0.5, abs=0.01)
