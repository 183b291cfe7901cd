"""The exception store, against a model of the kernel that writes it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmcopy.core.exception_store import (
    CowException,
    Cursor,
    Header,
    StoreDamaged,
    area_chunk,
    committed,
)
from dmcopy.units import Bytes, Chunks, Sectors

CHUNK = Sectors(8)
CHUNK_BYTES = 4096
PER_AREA = CHUNK_BYTES // 16


class KernelModel:
    """Writes exceptions as drivers/md/dm-snap-persistent.c does, into a bytearray."""

    def __init__(self, chunks: int) -> None:
        self.disk = bytearray(chunks * CHUNK_BYTES)
        self.disk[:16] = struct.pack("<4I", 0x70416E53, 1, 1, CHUNK)
        self.written: list[CowException] = []
        self._next_free = 2

    def commit(self, old: int) -> None:
        """Save one chunk: the next area is zeroed before this one is full."""
        if self._next_free % (PER_AREA + 1) == 1:
            self._next_free += 1
        count = len(self.written)
        area, index = divmod(count, PER_AREA)
        if index == PER_AREA - 1:
            start = area_chunk(area + 1, PER_AREA) * CHUNK_BYTES
            self.disk[start : start + CHUNK_BYTES] = bytes(CHUNK_BYTES)
        at = area_chunk(area, PER_AREA) * CHUNK_BYTES + index * 16
        self.disk[at : at + 16] = struct.pack("<2Q", old, self._next_free)
        self.written.append(CowException(Chunks(old), Chunks(self._next_free)))
        self._next_free += 1


def _refresh(cursor: Cursor, disk: bytearray, block: int) -> list[CowException]:
    found = []
    while True:
        offset, length = cursor.pending_read(Bytes(block))
        assert offset % block == 0
        assert length % block == 0
        found += list(cursor.feed(bytes(disk[offset : offset + length])))
        if not cursor.more:
            return found


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=8),
    st.sampled_from([512, 4096]),
)
def test_tail_reading_sees_every_exception_once_whenever_it_looks(
    steps: list[int], block: int
) -> None:
    kernel, cursor = KernelModel(3000), Cursor(CHUNK)
    seen: list[CowException] = []
    old = 0
    for step in steps:
        for _ in range(step):
            kernel.commit(old)
            old += 7
        seen += _refresh(cursor, kernel.disk, block)
        assert seen == kernel.written


def test_garbage_behind_the_zeroed_area_is_not_read() -> None:
    kernel, cursor = KernelModel(800), Cursor(CHUNK)
    # a stale store lay on the device: the area after next is full of old entries
    stale = area_chunk(1, PER_AREA) * CHUNK_BYTES
    kernel.disk[stale : stale + CHUNK_BYTES] = struct.pack("<2Q", 1, 2) * PER_AREA
    for old in range(PER_AREA):
        kernel.commit(old)
        assert _refresh(cursor, kernel.disk, 512) == [kernel.written[-1]]
    assert cursor.position == (1, 0)


def test_looking_again_without_news_reads_one_block_and_finds_nothing() -> None:
    kernel, cursor = KernelModel(100), Cursor(CHUNK)
    for old in range(40):
        kernel.commit(old)
    assert len(_refresh(cursor, kernel.disk, 512)) == 40
    assert _refresh(cursor, kernel.disk, 512) == []
    offset, _ = cursor.pending_read(Bytes(512))
    assert offset == CHUNK_BYTES + 40 * 16 // 512 * 512


def test_entries_end_at_the_first_unused_one() -> None:
    area = struct.pack("<6Q", 5, 2, 0, 3, 9, 0) + struct.pack("<2Q", 7, 4)
    assert list(committed(area)) == [(5, 2), (0, 3)]


def test_feeding_something_else_than_asked_for_is_our_bug() -> None:
    cursor = Cursor(CHUNK)
    cursor.pending_read(Bytes(512))
    with pytest.raises(ValueError, match="asked for"):
        cursor.feed(b"")


@given(st.booleans(), st.integers(0, 1 << 31))
def test_header_survives_being_written_and_read(valid: bool, chunk: int) -> None:
    header = Header(valid, 1, Sectors(chunk))
    assert Header.parse(header.as_bytes()) == header


@pytest.mark.parametrize(
    ("words", "said"), [((0, 1, 1, 8), "magic"), ((0x70416E53, 1, 2, 8), "version 2")]
)
def test_header_that_is_none_is_damage(words: tuple[int, ...], said: str) -> None:
    with pytest.raises(StoreDamaged, match=said):
        Header.parse(struct.pack("<4I", *words))


def test_first_areas_lie_where_the_kernel_puts_them() -> None:
    assert [area_chunk(area, 256) for area in range(3)] == [1, 258, 515]  # KERNEL.md 1
