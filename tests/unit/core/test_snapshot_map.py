"""The snapshot map, against a dict."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.exception_store import CowException, StoreDamaged
from dmcopy.core.extent import Extent
from dmcopy.core.snapshot_map import SnapshotMap
from dmcopy.units import Chunks, Sectors

CHUNK = Sectors(8)
STRIDE = 257  # of 4 KiB chunks: 256 exceptions an area, and the area


def _data_chunks(first: int = 2) -> Iterator[int]:
    new = first
    while True:
        if new % STRIDE != 1:
            yield new
        new += 1


def _map(source: int, model: dict[int, int]) -> SnapshotMap:
    snapshot = SnapshotMap(CHUNK, Sectors(source))
    snapshot.update(CowException(Chunks(old), Chunks(new)) for old, new in model.items())
    return snapshot


def _read(snapshot: SnapshotMap, at: Extent) -> dict[int, tuple[int, int]]:
    """Give sector -> (COW chunk, sector in it), walking runs as a reader does."""
    found: dict[int, tuple[int, int]] = {}
    for run in snapshot.runs(at):
        position = 0
        for piece in run.pieces:
            for sector in range(piece.start, piece.end):
                chunk, within = divmod(position, CHUNK)
                assert sector not in found
                found[sector] = (run.new + chunk, within)
                position += 1
    return found


@given(
    st.integers(1, 900),
    st.lists(st.integers(0, 112), unique=True, max_size=60),
    st.integers(0, 112),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
)
def test_runs_give_each_saved_sector_its_place_on_the_cow_device(
    source: int, chunks: list[int], first: int, length: int, dice: random.Random
) -> None:
    chunks = [chunk for chunk in chunks if chunk * CHUNK < source]
    new = list(zip(_data_chunks(200), range(len(chunks)), strict=False))
    dice.shuffle(new)
    model = {old: place for old, (place, _) in zip(chunks, new, strict=True)}
    start = first * CHUNK
    if start >= source:
        return
    at = Extent.between(Sectors(start), Sectors(min(start + length, source)))
    expected = {
        sector: (model[sector // CHUNK], sector % CHUNK)
        for sector in range(at.start, at.end)
        if sector // CHUNK in model
    }
    assert _read(_map(source, model), at) == expected


def test_adjacent_chunks_make_one_run_even_if_their_origins_are_apart() -> None:
    snapshot = _map(8000, {100: 10, 3: 11, 50: 12, 51: 13, 7: 20})
    runs = snapshot.runs(Extent(Sectors(0), Sectors(8000)))
    assert [run.new for run in runs] == [10, 20]
    assert [piece.start // CHUNK for piece in runs[0].pieces] == [100, 3, 50]
    assert runs[0].pieces[2].length == 2 * CHUNK  # joined


def test_run_is_cut_before_it_has_more_pieces_than_a_vectored_read_takes() -> None:
    model = dict(zip(range(0, 4000, 2), _data_chunks(2), strict=False))
    runs = _map(8 * 4000, model).runs(Extent(Sectors(0), Sectors(8 * 4000)))
    assert max(len(run.pieces) for run in runs) <= 512
    assert sum(len(run.pieces) for run in runs) == 2000


def test_news_after_a_look_are_seen() -> None:
    snapshot = _map(8000, {5: 2})
    everything = Extent(Sectors(0), Sectors(8000))
    assert len(snapshot.runs(everything)) == 1
    snapshot.add(Chunks(4), Chunks(9))
    assert {run.new for run in snapshot.runs(everything)} == {2, 9}
    assert len(snapshot) == 2


@pytest.mark.parametrize(
    ("old", "new"), [(1000, 2), (5, 0), (5, 1), (5, 258), (5, 1 << 40), (1 << 60, 2)]
)
def test_exception_that_cannot_be_is_damage_and_never_overlaid(old: int, new: int) -> None:
    with pytest.raises(StoreDamaged, match="exception store"):
        SnapshotMap(CHUNK, Sectors(8000)).add(Chunks(old), Chunks(new))


def test_chunk_saved_twice_is_damage() -> None:
    snapshot = SnapshotMap(CHUNK, Sectors(8000))
    snapshot.add(Chunks(5), Chunks(2))
    snapshot.add(Chunks(5), Chunks(3))
    with pytest.raises(StoreDamaged, match="twice"):
        snapshot.runs(Extent(Sectors(0), Sectors(80)))


TIB_IN_4K_CHUNKS = 1 << 28


def _chunks(kind: str, count: int) -> Iterable[int]:
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
    chunks = _chunks(kind, count)
    places = zip(chunks, _data_chunks(), strict=False)
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
