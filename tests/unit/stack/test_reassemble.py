"""What survives a power cut, and how far it is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmcopy.core.exception_store import Header, area_chunk
from dmcopy.core.geometry import exceptions_per_area, never_overflow
from dmcopy.errors import PointInTimeLost
from dmcopy.stack.evidence import refuse_written
from dmcopy.stack.reassemble import check_store
from dmcopy.units import Bytes, Sectors, to_bytes
from tests.unit.core.kernel_store import KernelStore
from tests.unit.kernel.tree import Tree

CHUNK = Sectors(8)
BYTES = 4096
SOURCE = Sectors(1 << 20)
LARGE = Sectors((2048 + 4 * exceptions_per_area(CHUNK)) * CHUNK)


@contextmanager
def store(
    path: Path, exceptions: int, *, header: Header | None = None, size: Sectors = LARGE
) -> Iterator[int]:
    """Give an open file with a store of so many exceptions, as the kernel writes it."""
    kernel = KernelStore(BYTES)
    kernel.commit(range(exceptions))
    with path.open("wb") as file:
        file.truncate(to_bytes(size))
        file.write((header or Header(True, 1, CHUNK)).as_bytes())
        for area, data in kernel.areas.items():
            file.seek(area_chunk(area, kernel.per_area) * BYTES)
            file.write(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def check(fd: int, *, known: int = 0, size: Sectors = LARGE, source: Sectors = SOURCE) -> None:
    check_store(fd, block=Bytes(512), size=size, source=source, chunk=CHUNK, known=known)


@pytest.mark.parametrize("count", [0, 1, 200, 256])
def test_store_with_room_left_and_all_that_is_known_is_trusted(tmp_path: Path, count: int) -> None:
    with store(tmp_path / "cow", count) as fd:
        check(fd, known=count)


def test_store_with_fewer_exceptions_than_the_journal_knows_is_not_trusted(tmp_path: Path) -> None:
    with (
        store(tmp_path / "cow", 10) as fd,
        pytest.raises(PointInTimeLost, match="has 10 exceptions, but had 11"),
    ):
        check(fd, known=11)


def test_store_that_was_nearly_full_is_not_trusted(tmp_path: Path) -> None:
    per_area = exceptions_per_area(CHUNK)
    count = 40
    just_enough = Sectors((2048 + per_area + 1 + count + 1) * CHUNK)
    with store(tmp_path / "cow", count, size=just_enough) as fd:
        check(fd, size=just_enough)
        with pytest.raises(PointInTimeLost, match="whether it overflowed cannot be known"):
            check(fd, size=Sectors(just_enough - CHUNK))


def test_store_that_can_never_overflow_is_trusted_however_full(tmp_path: Path) -> None:
    source = Sectors(64 * CHUNK)
    size = never_overflow(source, CHUNK)
    with store(tmp_path / "cow", 64, size=size) as fd:
        check(fd, size=size, source=source)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (Header(False, 1, CHUNK), "marked it invalid"),
        (Header(True, 1, Sectors(16)), "chunks are of 16 sectors, not 8"),
    ],
)
def test_header_that_is_not_as_it_was_is_not_trusted(
    tmp_path: Path, header: Header, why: str
) -> None:
    with store(tmp_path / "cow", 3, header=header) as fd, pytest.raises(PointInTimeLost, match=why):
        check(fd)


def test_wiped_or_cut_store_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "cow"
    for content in (bytes(1 << 20), b""):
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(PointInTimeLost, match="cannot be used"):
            check(fd)
        os.close(fd)


# has anybody written?


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    host = Tree(tmp_path / "host")
    host.disk("sda", "8:0")
    host.partition("8:0", 1, "8:1")
    host.disk("dm-0", "254:0", slaves=("8:1",))
    for devno, writes in (("8:0", 500), ("8:1", 0), ("254:0", 0)):
        stat(host, devno, writes)
    return host


def stat(host: Tree, devno: str, writes: int) -> None:
    host.write(devno, "stat", f"9 0 9 9 {writes} 0 9 9 0 0 0 0 0 0 0 0 0")


def test_partition_counts_for_itself(tree: Tree) -> None:
    refuse_written("254:0", "/dev/mapper/x", tree.sysfs())


def test_write_to_the_origin_or_to_what_is_under_it_is_seen(tree: Tree) -> None:
    stat(tree, "254:0", 1)
    with pytest.raises(PointInTimeLost, match="/dev/mapper/x was written after the machine"):
        refuse_written("254:0", "/dev/mapper/x", tree.sysfs())
    stat(tree, "254:0", 0)
    stat(tree, "8:1", 2)
    with pytest.raises(PointInTimeLost, match=r"/dev/sda1 under /dev/mapper/x was written .*\(2 "):
        refuse_written("254:0", "/dev/mapper/x", tree.sysfs())


def test_loop_device_cannot_tell(tree: Tree) -> None:
    tree.loop(3, "/srv/file")
    stat(tree, "7:3", 0)
    tree.disk("dm-1", "254:1", slaves=("7:3",))
    stat(tree, "254:1", 0)
    with pytest.raises(PointInTimeLost, match="whether its file was written"):
        refuse_written("254:1", "/dev/mapper/y", tree.sysfs())
