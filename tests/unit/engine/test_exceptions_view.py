"""The view of an exception store, against stores in files."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dmcopy.core.extent import Extent
from dmcopy.engine.exceptions_view import CowView, NullView
from dmcopy.errors import DmcopyError, PointInTimeLost, SourceFailed
from dmcopy.units import Bytes, Sectors
from tests.unit.engine.store import StoreFile

CHUNK = Sectors(8)
SIZE = 4096
Opener = Callable[..., CowView]


@pytest.fixture
def store(tmp_path: Path) -> StoreFile:
    return StoreFile(tmp_path / "cow", CHUNK)


@pytest.fixture
def view_of(store: StoreFile) -> Iterator[Opener]:
    fds: list[int] = []

    def opened(
        source: int = 1 << 20,
        *,
        chunk: Sectors = CHUNK,
        block: int = 512,
        preadv: Callable[[int, Sequence[memoryview], int], int] = os.preadv,
    ) -> CowView:
        store.flush()
        fd = os.open(store.path, os.O_RDONLY)
        fds.append(fd)
        return CowView(
            fd, "cow", chunk=chunk, source=Sectors(source), block=Bytes(block), preadv=preadv
        )

    yield opened
    for fd in fds:
        os.close(fd)


def chunk_data(old: int) -> bytes:
    return struct.pack("<Q", old + 1) * (SIZE // 8)


def patched(view: CowView, at: Extent) -> tuple[int, bytes]:
    data = bytearray(b"." * at.size)
    count = view.patch(at, memoryview(data))
    return count, bytes(data)


def test_empty_store_changes_nothing(view_of: Opener) -> None:
    view = view_of()
    view.refresh()
    assert view.count == 0
    assert patched(view, Extent(Sectors(0), Sectors(16))) == (0, b"." * 8192)


def test_saved_chunks_land_where_they_belong(store: StoreFile, view_of: Opener) -> None:
    for old in (3, 1, 9):
        store.save(old, chunk_data(old))
    view = view_of()
    view.refresh()
    count, data = patched(view, Extent(Sectors(0), Sectors(64)))
    assert count == 2 * SIZE
    free = b"." * SIZE
    parts = [free, chunk_data(1), free, chunk_data(3), *[free] * 4]
    assert data == b"".join(parts)


def test_refresh_reads_only_what_is_new(
    store: StoreFile, view_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []
    preadv = os.preadv

    def noted(fd: int, views: Sequence[memoryview], offset: int) -> int:
        reads.append((offset, sum(map(len, views))))
        return preadv(fd, views, offset)

    monkeypatch.setattr(os, "preadv", noted)
    for old in range(300):  # more than one area of 256
        store.save(old, chunk_data(old))
    view = view_of()
    view.refresh()
    assert view.count == 300
    reads.clear()
    view.refresh()
    # entry 44 of area 1, which is chunk 258: the block that holds it and the rest of the area
    assert reads == [(258 * SIZE + 512, SIZE - 512)]
    store.save(1000, chunk_data(1000))
    store.flush()
    view.refresh()
    assert view.count == 301


def test_random_stores_give_what_was_saved(store: StoreFile, view_of: Opener) -> None:
    chance = random.Random(4)
    source = 200 * 8 + 3  # the last chunk has three sectors
    view = view_of(source)
    olds = list(range(201))
    chance.shuffle(olds)
    saved: dict[int, bytes] = {}
    while olds:
        for old in [olds.pop() for _ in range(min(len(olds), chance.randint(1, 30)))]:
            # the kernel saves of the last chunk only what the source has
            saved[old] = chunk_data(old)[: SIZE if old < 200 else 3 * 512]
            store.save(old, saved[old], skip=chance.choice((0, 0, 0, 1, 7)))
        store.flush()
        view.refresh()
        assert view.count == len(saved)
        for at in Extent(Sectors(0), Sectors(source)).split(Sectors(64), align=Sectors(64)):
            chunks = range(at.start // 8, -(-at.end // 8))
            expected = b"".join(
                saved.get(c, b"." * SIZE if c < 200 else b"." * 3 * 512) for c in chunks
            )
            count, data = patched(view, at)
            assert data == expected
            assert count == sum(len(saved[c]) for c in chunks if c in saved)


@pytest.mark.parametrize("block", [512, 4096])
def test_chunk_saved_behind_the_incomplete_last_one_is_right(
    store: StoreFile, view_of: Opener, block: int
) -> None:
    # chunk 2 of a source of 2 chunks and 3 sectors; then chunk 0 next to it on the COW device
    store.save(2, b"z" * 3 * 512)
    store.save(0, chunk_data(0))
    store.save(1, chunk_data(1))
    view = view_of(2 * 8 + 3, block=block)
    view.refresh()
    count, data = patched(view, Extent(Sectors(0), Sectors(19)))
    assert data == chunk_data(0) + chunk_data(1) + b"z" * 3 * 512
    assert count == 19 * 512


@pytest.mark.parametrize("block", [512, 4096])
def test_run_up_to_the_incomplete_last_chunk_is_right(
    store: StoreFile, view_of: Opener, block: int
) -> None:
    for old in (1, 0, 2):
        store.save(old, chunk_data(old) if old < 2 else b"z" * 3 * 512)
    view = view_of(2 * 8 + 3, block=block)
    view.refresh()
    assert patched(view, Extent(Sectors(0), Sectors(19)))[1] == (
        chunk_data(0) + chunk_data(1) + b"z" * 3 * 512
    )


def test_short_read_of_saved_chunks_is_continued(store: StoreFile, view_of: Opener) -> None:
    for old in (5, 1, 2, 7):
        store.save(old, chunk_data(old))
    calls: list[int] = []

    def short(fd: int, views: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        return os.preadv(fd, [views[0][:512]], offset)

    view = view_of(preadv=short)
    view.refresh()
    count, data = patched(view, Extent(Sectors(0), Sectors(64)))
    assert count == 4 * SIZE
    for old in (5, 1, 2, 7):
        assert data[old * SIZE : (old + 1) * SIZE] == chunk_data(old)
    assert len(calls) == 4 * 8


def test_adjacent_cow_chunks_come_with_one_read(store: StoreFile, view_of: Opener) -> None:
    for old in (5, 1, 2, 7):
        store.save(old, chunk_data(old))
    calls: list[int] = []

    def counted(fd: int, views: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        return os.preadv(fd, views, offset)

    view = view_of(preadv=counted)
    view.refresh()
    assert patched(view, Extent(Sectors(0), Sectors(64)))[0] == 4 * SIZE
    assert calls == [2 * SIZE]


def test_cow_device_that_cannot_be_read_is_named(store: StoreFile, view_of: Opener) -> None:
    def broken(fd: int, views: Sequence[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    store.save(0, chunk_data(0))
    view = view_of(preadv=broken)
    view.refresh()
    with pytest.raises(SourceFailed, match="cannot read COW device cow, 4096 bytes at 8192: Inp"):
        patched(view, Extent(Sectors(0), Sectors(8)))


def test_cow_device_that_ends_early_is_an_error(store: StoreFile, view_of: Opener) -> None:
    store.save(0, chunk_data(0), skip=10_000)
    view = view_of()
    view.refresh()
    with pytest.raises(SourceFailed, match="ends at"):
        patched(view, Extent(Sectors(0), Sectors(8)))


def test_store_of_another_chunk_size_is_not_read(view_of: Opener) -> None:
    with pytest.raises(DmcopyError, match="chunks of 8 sectors, not 16"):
        view_of(chunk=Sectors(16)).refresh()


def test_store_that_is_marked_invalid_is_point_in_time_lost(
    store: StoreFile, view_of: Opener
) -> None:
    struct.pack_into("<I", store.data, 4, 0)
    with pytest.raises(PointInTimeLost):
        view_of().refresh()


def test_idle_device_has_no_exceptions() -> None:
    view = NullView()
    view.refresh()
    assert view.patch(Extent(Sectors(0), Sectors(8)), memoryview(bytearray(SIZE))) == 0
