"""The snapshot map against a plain dict, stores that cannot be, and what it takes of memory."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.exception_store import CowException, StoreDamaged
from dmcopy.core.extent import Extent
from dmcopy.core.snapshot_map import Run, SnapshotMap
from dmcopy.units import Chunks, Sectors, round_down

CHUNK = Sectors(8)


def flat(runs: Iterable[Run], chunk: Sectors) -> dict[int, int]:
    """Give source sector -> COW sector as one vectored read of each run would fill them."""
    found: dict[int, int] = {}
    for run in runs:
        at = run.new * chunk
        for piece in run.pieces:
            for sector in range(piece.start, piece.end):
                assert sector not in found
                found[sector] = at
                at += 1
    return found


def is_data(new: int, chunk: Sectors) -> bool:
    return new >= 2 and new % (chunk * 32 + 1) != 1


def data_chunks() -> Iterator[int]:
    """Give the data chunks of a COW device of 4 KiB chunks, in order."""
    return (new for new in itertools.count(2) if is_data(new, CHUNK))


@st.composite
def stores(draw: st.DrawFn) -> tuple[Sectors, Sectors, dict[int, int], Extent]:
    """A chunk size, a source's length, what is saved where, and an extent to ask for."""
    chunk = Sectors(draw(st.sampled_from([8, 16, 128])))
    source = Sectors(draw(st.integers(1, 60 * chunk)))
    chunks = -(-source // chunk)
    olds = draw(st.lists(st.integers(0, chunks - 1), unique=True))
    base = draw(st.sampled_from([2, 240, (1 << 40) - 2000]))
    if draw(st.booleans()):
        free = (new for new in range(base, base + 500) if is_data(new, chunk))
        news = [next(free) for _ in olds]
    else:
        numbers = st.integers(base, base + 300).filter(lambda new: is_data(new, chunk))
        news = draw(st.lists(numbers, unique=True, min_size=len(olds), max_size=len(olds)))
    start = round_down(Sectors(draw(st.integers(0, source - 1))), chunk)
    end = draw(st.integers(start + 1, source))
    return chunk, source, dict(zip(olds, news, strict=True)), Extent.between(start, Sectors(end))


@given(store=stores(), cut=st.integers(0, 60))
def test_runs_cover_exactly_what_is_saved_of_the_extent(
    store: tuple[Sectors, Sectors, dict[int, int], Extent], cut: int
) -> None:
    chunk, source, saved, at = store
    exceptions = [CowException(Chunks(old), Chunks(new)) for old, new in saved.items()]
    snapshot = SnapshotMap(chunk, source)
    snapshot.update(exceptions[:cut])
    snapshot.runs(at)  # looking must not disturb what comes later
    snapshot.update(exceptions[cut:])
    runs = snapshot.runs(at)
    assert len(snapshot) == len(saved)
    assert flat(runs, chunk) == {
        sector: saved[sector // chunk] * chunk + sector % chunk
        for sector in range(at.start, at.end)
        if sector // chunk in saved
    }
    assert [run.new for run in runs] == sorted(run.new for run in runs)


def test_neighbours_on_the_cow_device_come_with_one_read() -> None:
    snapshot = SnapshotMap(CHUNK, Sectors(800))
    for old, new in ((9, 2), (5, 3), (6, 4), (1, 9)):
        snapshot.add(Chunks(old), Chunks(new))
    assert snapshot.runs(Extent(Sectors(0), Sectors(800))) == [
        Run(Chunks(2), (Extent(Sectors(72), CHUNK), Extent(Sectors(40), Sectors(16)))),
        Run(Chunks(9), (Extent(Sectors(8), CHUNK),)),
    ]


def test_a_run_ends_behind_an_incomplete_chunk_of_the_source() -> None:
    snapshot = SnapshotMap(CHUNK, Sectors(27))
    snapshot.update([CowException(Chunks(3), Chunks(2)), CowException(Chunks(0), Chunks(3))])
    assert snapshot.runs(Extent(Sectors(0), Sectors(27))) == [
        Run(Chunks(2), (Extent(Sectors(24), Sectors(3)),)),
        Run(Chunks(3), (Extent(Sectors(0), CHUNK),)),
    ]


def test_a_run_has_no_more_pieces_than_one_vectored_read_takes() -> None:
    big = Sectors(2048)  # chunks of 1 MiB: no area for a long while
    snapshot = SnapshotMap(big, Sectors(4000 * big))
    snapshot.update(CowException(Chunks(2 * i), Chunks(2 + i)) for i in range(1300))
    runs = snapshot.runs(Extent(Sectors(0), Sectors(4000 * big)))
    assert [len(run.pieces) for run in runs] == [512, 512, 276]
    assert [run.new for run in runs] == [2, 514, 1026]


def test_an_extent_over_many_buckets_is_found_whole() -> None:
    count = 3 * 4096 + 5
    snapshot = SnapshotMap(CHUNK, Sectors(count * CHUNK))
    stride = 257
    news = [new for new in range(2, 2 * count) if new % stride != 1][:count]
    snapshot.update(CowException(Chunks(i), Chunks(new)) for i, new in enumerate(news))
    at = Extent(Sectors(4000 * CHUNK), Sectors(8293 * CHUNK))
    pieces = [piece for run in snapshot.runs(at) for piece in run.pieces]
    assert sum(piece.length for piece in pieces) == at.length


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (100, 2, "the source has 100 chunks"),
        (1 << 63, 2, "the source has 100 chunks"),
        (5, 0, "of the store itself"),
        (5, 1, "of the store itself"),
        (5, 258, "of the store itself"),
        (5, 257 * 1000 + 1, "of the store itself"),
        (5, 1001, "the COW device has 1000 chunks"),
        (5, 1 << 63, "the COW device has 1000 chunks"),
    ],
)
def test_an_exception_that_cannot_be_is_refused_and_nothing_is_added(
    old: int, new: int, why: str
) -> None:
    snapshot = SnapshotMap(CHUNK, Sectors(800))
    good = [CowException(Chunks(i), Chunks(2 + i)) for i in range(50)]
    cow = Sectors(8000) if "COW" in why else None
    with pytest.raises(StoreDamaged, match=why):
        snapshot.update([*good, CowException(Chunks(old), Chunks(new))], cow=cow)
    assert len(snapshot) == 0
    assert snapshot.runs(Extent(Sectors(0), Sectors(800))) == []


@given(news=st.lists(st.integers(2, 1 << 39), min_size=1, max_size=60))
def test_no_area_passes_for_a_data_chunk(news: list[int]) -> None:
    snapshot = SnapshotMap(CHUNK, Sectors(800))
    exceptions = [CowException(Chunks(i), Chunks(new)) for i, new in enumerate(news)]
    if all(is_data(new, CHUNK) for new in news):
        snapshot.update(exceptions)
    else:
        with pytest.raises(StoreDamaged, match="of the store itself"):
            snapshot.update(exceptions)


def test_a_chunk_that_was_saved_twice_is_refused() -> None:
    snapshot = SnapshotMap(CHUNK, Sectors(800))
    snapshot.update([CowException(Chunks(7), Chunks(2)), CowException(Chunks(7), Chunks(9))])
    with pytest.raises(StoreDamaged, match="a chunk of the source twice"):
        snapshot.runs(Extent(Sectors(0), Sectors(800)))


def test_two_chunks_saved_in_one_are_refused() -> None:
    snapshot = SnapshotMap(CHUNK, Sectors(800))
    snapshot.update([CowException(Chunks(7), Chunks(2)), CowException(Chunks(8), Chunks(2))])
    with pytest.raises(StoreDamaged, match="two chunks saved in chunk 2"):
        snapshot.runs(Extent(Sectors(0), Sectors(800)))


def test_an_extent_that_starts_within_a_chunk_is_our_bug() -> None:
    with pytest.raises(ValueError, match="does not start at a chunk"):
        SnapshotMap(CHUNK, Sectors(800)).runs(Extent(Sectors(4), Sectors(8)))


TIB_IN_4K_CHUNKS = 1 << 28


def chunks_of(kind: str, count: int) -> Iterable[int]:
    match kind:
        case "dense":
            return range(count)
        case "random in 1 TiB":
            return random.Random(7).sample(range(TIB_IN_4K_CHUNKS), count)
        case "one in 256":
            return range(0, 256 * count, 256)
        case _:
            return [1000 * (i // 50) + i % 50 for i in range(count)]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("dense", 100_000),
        ("random in 1 TiB", 300_000),
        ("one in 256", 100_000),
        ("clustered", 100_000),
    ],
)
def test_map_takes_at_most_24_bytes_an_exception(kind: str, count: int) -> None:
    chunks = chunks_of(kind, count)
    places = zip(chunks, data_chunks(), strict=False)
    pairs = [CowException(Chunks(old), Chunks(new)) for old, new in places]
    tracemalloc.start()
    try:
        snapshot = SnapshotMap(CHUNK, Sectors(TIB_IN_4K_CHUNKS * CHUNK))
        before, _ = tracemalloc.get_traced_memory()
        snapshot.update(pairs)
        after, _ = tracemalloc.get_traced_memory()
        assert after - before <= 24 * count
        for chunk in (0, 1 << 20, (1 << 28) - 4096):
            snapshot.runs(Extent(Sectors(chunk * CHUNK), Sectors(4096 * CHUNK)))
        looked, peak = tracemalloc.get_traced_memory()
        assert looked - before <= 24 * count
        assert peak - before <= 24 * count + (8 << 20)  # and what one look needs for a moment
    finally:
        tracemalloc.stop()


def test_extents_are_all_that_is_saved_joined_and_cut_at_the_end() -> None:
    found = SnapshotMap(Sectors(8), Sectors(100_000 * 8 - 3))
    assert found.extents() == []
    olds = [0, 1, 2, 7, 4095, 4096, 99_998, 99_999]
    for new, old in enumerate(reversed(olds)):
        found.add(Chunks(old), Chunks(2 + new))
    assert found.extents() == [
        Extent(Sectors(0), Sectors(24)),
        Extent(Sectors(56), Sectors(8)),
        Extent(Sectors(4095 * 8), Sectors(16)),
        Extent(Sectors(99_998 * 8), Sectors(13)),
    ]
