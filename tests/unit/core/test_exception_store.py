"""The exception store against a model of the kernel's writer, torn reads included."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.exception_store import (
    CowException,
    Cursor,
    Header,
    StoreDamaged,
    area_chunk,
    committed,
)
from dmcopy.units import Bytes, Sectors
from tests.unit.core.kernel_store import KernelStore

BLOCK = Bytes(512)
CHUNK = Sectors(8)
CHUNK_BYTES = 4096


def catch_up(cursor: Cursor, store: KernelStore, block: Bytes = BLOCK) -> list[tuple[int, int]]:
    """Read until the end of the table, as the engine does."""
    seen: list[tuple[int, int]] = []
    while True:
        offset, length = cursor.pending_read(block)
        assert offset % block == 0
        assert length % block == 0
        seen += cursor.feed(store.read(offset, length))
        if not cursor.more:
            return seen


def test_areas_stand_where_the_kernel_was_seen_to_put_them() -> None:
    assert [area_chunk(area, 256) for area in (0, 1, 2)] == [1, 258, 515]


@given(valid=st.booleans(), power=st.integers(0, 20))
def test_a_header_is_read_as_it_was_written(valid: bool, power: int) -> None:
    header = Header(valid, 1, Sectors(1 << power))
    assert Header.parse(header.as_bytes()) == header


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes of header"),
        (bytes(16), "magic 0x0"),
        (struct.pack("<4I", 0x70416E53, 1, 2, 8), "version 2"),
        (struct.pack(">4I", 0x70416E53, 1, 1, 8), "magic 0x536e4170"),
    ],
)
def test_a_header_that_the_kernel_did_not_write_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(StoreDamaged, match=why):
        Header.parse(data)


@given(
    chunk=st.sampled_from([4096, 8192, 65536]),
    block=st.sampled_from([512, 4096]),
    steps=st.lists(st.integers(0, 700), max_size=12),
    seed=st.integers(0, 1 << 32),
)
def test_each_exception_is_seen_once_and_in_order_however_the_table_grows(
    chunk: int, block: int, steps: list[int], seed: int
) -> None:
    olds = random.Random(seed)
    store, cursor = KernelStore(chunk), Cursor(Sectors(chunk // 512))
    seen: list[tuple[int, int]] = []
    for step in steps:
        store.commit([olds.randrange(1 << 40) for _ in range(step)])
        if olds.random() < 0.6:
            seen += catch_up(cursor, store, Bytes(block))
            assert seen == store.entries
    assert seen + catch_up(cursor, store, Bytes(block)) == store.entries
    assert cursor.position == divmod(len(store.entries), chunk // 16)


@given(
    first=st.integers(0, 600),
    second=st.integers(1, 255),
    torn=st.integers(0, 255),
    old=st.booleans(),
)
def test_a_read_torn_by_the_kernels_write_loses_nothing_that_was_committed(
    first: int, second: int, torn: int, old: bool
) -> None:
    """Any mix of sectors of before and after: committed ones are seen, later ones in time."""
    store, cursor = KernelStore(4096), Cursor(Sectors(8))
    store.commit(range(first))
    seen = catch_up(cursor, store)
    was = len(store.entries)
    area, before, after = store.commit(range(first, first + second))[0]
    mixed = b"".join(
        (after if torn >> sector & 1 else before)[sector * 512 : sector * 512 + 512]
        for sector in range(8)
    )
    offset, length = cursor.pending_read(BLOCK)
    assert offset // 4096 == area_chunk(area, 256)
    start = offset % 4096
    seen += cursor.feed((mixed if old else after)[start : start + length])
    assert len(seen) >= was
    assert seen == store.entries[: len(seen)]
    assert seen + catch_up(cursor, store) == store.entries


def test_garbage_behind_the_zeroed_area_is_not_read() -> None:
    """A stale store lay on the device: the next area is full of old entries until it is zeroed."""
    store, cursor = KernelStore(CHUNK_BYTES), Cursor(CHUNK)
    store.areas[1] = bytearray(struct.pack("<2Q", 1, 2) * store.per_area)
    for old in range(1, store.per_area + 1):
        store.commit([old])
        assert catch_up(cursor, store) == [store.entries[-1]]
    assert cursor.position == (1, 0)


def test_looking_again_without_news_finds_nothing() -> None:
    store, cursor = KernelStore(CHUNK_BYTES), Cursor(CHUNK)
    store.commit(range(40))
    assert len(catch_up(cursor, store)) == 40
    assert catch_up(cursor, store) == []


def test_an_area_read_with_a_hole_ends_at_the_hole() -> None:
    store, cursor = KernelStore(4096), Cursor(Sectors(8))
    [(_, _, after)] = store.commit(range(1, 257))
    offset, length = cursor.pending_read(BLOCK)
    assert (offset, length) == (4096, 4096)
    hole = after[:2048] + bytes(512) + after[2560:]
    assert list(cursor.feed(hole)) == store.entries[:128]
    assert not cursor.more


def test_a_full_area_sends_the_reader_to_the_next() -> None:
    store, cursor = KernelStore(4096), Cursor(Sectors(8))
    store.commit(range(1, 257))
    cursor.pending_read(BLOCK)
    cursor.feed(store.read(4096, 4096))
    assert cursor.more
    assert cursor.pending_read(BLOCK)[0] == 258 * 4096


def test_a_second_read_begins_at_the_block_of_the_next_entry() -> None:
    store, cursor = KernelStore(4096), Cursor(Sectors(8))
    store.commit(range(33))
    catch_up(cursor, store)
    assert cursor.pending_read(Bytes(512)) == (4096 + 512, 4096 - 512)
    assert cursor.pending_read(Bytes(4096)) == (4096, 4096)


def test_a_look_reads_about_twice_what_the_last_one_found() -> None:
    store, cursor = KernelStore(65536), Cursor(Sectors(128))

    def lengths(news: int) -> list[int]:
        store.commit(range(1, news + 1))
        found: list[int] = []
        while True:
            offset, length = cursor.pending_read(BLOCK)
            found.append(length)
            cursor.feed(store.read(offset, length))
            if not cursor.more:
                return found

    assert lengths(0) == [4096]
    assert lengths(10) == [4096], "a page at the least"
    # 160 bytes are there already: what is not covered is read on from, twice as long
    assert lengths(1000) == [4096, 8192, 16384]
    assert lengths(1000)[0] >= 2 * 16000
    assert lengths(0)[0] >= 2 * 16000
    assert lengths(0) == [4096]
    assert cursor.position == (0, 2010)


def test_bytes_that_were_not_asked_for_are_not_taken() -> None:
    cursor = Cursor(Sectors(8))
    with pytest.raises(ValueError, match="None asked for"):
        cursor.feed(b"")
    cursor.pending_read(BLOCK)
    with pytest.raises(ValueError, match="100 bytes were fed, 4096 asked for"):
        cursor.feed(bytes(100))
    cursor.feed(bytes(4096))
    with pytest.raises(ValueError, match="None asked for"):
        cursor.feed(bytes(4096))


def test_entries_end_at_the_first_unused_one() -> None:
    area = struct.pack("<8Q", 5, 2, 0, 3, 9, 0, 7, 4)
    assert list(committed(area)) == [(5, 2), (0, 3)]


def test_an_exception_of_chunk_0_is_one() -> None:
    assert list(committed(struct.pack("<4Q", 0, 2, 0, 0))) == [(0, 2)]


def test_a_memoryview_is_as_good_as_bytes() -> None:
    data = bytearray(struct.pack("<4Q", 7, 2, 5, 3))
    assert list(committed(memoryview(data))) == [(7, 2), (5, 3)]


def test_entry_that_is_half_written_is_not_believed() -> None:
    """The new chunk is there, the old one is still 0: as a racing read of memory may see it."""
    store, cursor = bytearray(3 * CHUNK_BYTES), Cursor(CHUNK)

    def look() -> list[CowException]:
        offset, length = cursor.pending_read(Bytes(512))
        return list(cursor.feed(bytes(store[offset : offset + length])))

    assert look() == []
    struct.pack_into("<2Q", store, CHUNK_BYTES, 7, 2)
    struct.pack_into("<2Q", store, CHUNK_BYTES + 16, 0, 3)
    assert look() == [(7, 2)]
    assert cursor.in_doubt
    assert cursor.more
    struct.pack_into("<2Q", store, CHUNK_BYTES + 16, 9, 3)
    assert look() == [(9, 3)]
    assert not cursor.in_doubt
    assert not cursor.more


def test_entry_for_chunk_0_is_believed_the_second_time() -> None:
    store, cursor = bytearray(3 * CHUNK_BYTES), Cursor(CHUNK)
    struct.pack_into("<4Q", store, CHUNK_BYTES, 0, 2, 5, 3)
    seen: list[CowException] = []
    looks = 0
    while cursor.more:
        offset, length = cursor.pending_read(Bytes(512))
        seen += list(cursor.feed(bytes(store[offset : offset + length])))
        looks += 1
    assert seen == [(0, 2), (5, 3)]
    assert looks == 2
