"""Full reads and writes, and the calls that os has not; tests/lab opens real devices."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dmcopy.kernel.blkdev import (
    BlockDevice,
    devno,
    pread_full,
    punch_hole,
    pwrite_full,
    rename_new,
    syncfs,
)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_devno_is_written_as_the_kernel_does() -> None:
    assert devno(os.makedev(253, 4)) == "253:4"


def test_short_writes_and_reads_are_gone_on_with(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = os.pwritev, os.preadv

    def some_written(fd: int, views: Sequence[memoryview], offset: int) -> int:
        return write(fd, [views[0][:3]], offset)

    def some_read(fd: int, views: Sequence[memoryview], offset: int) -> int:
        return read(fd, [views[0][:5]], offset)

    monkeypatch.setattr(os, "pwritev", some_written)
    monkeypatch.setattr(os, "preadv", some_read)
    data, back = bytes(range(100)), bytearray(100)
    pwrite_full(file, memoryview(data), 7)
    pread_full(file, memoryview(back), 7)
    assert back == data


def test_reading_past_the_end_is_an_error(file: int) -> None:
    os.pwrite(file, b"abc", 0)
    with pytest.raises(OSError, match="end of device at 3") as caught:
        pread_full(file, memoryview(bytearray(4)), 0)
    assert caught.value.errno == errno.EIO


def test_writing_nothing_is_an_error_not_a_loop(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="nothing written"):
        pwrite_full(file, memoryview(b"abc"), 0)


def test_what_is_no_block_device_is_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # an open() of it would wait for ever
    for path in (str(fifo), "/dev/null", str(tmp_path)):
        with pytest.raises(OSError, match=path) as caught:
            BlockDevice.open(path)
        assert caught.value.errno == errno.ENOTBLK


def test_missing_device_is_never_created(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BlockDevice.open(str(tmp_path / "sdz"), write=True)
    assert not (tmp_path / "sdz").exists()


def test_punched_hole_reads_as_zeroes_and_keeps_the_size(file: int) -> None:
    os.pwrite(file, b"x" * 20000, 0)
    punch_hole(file, 5000, 10000)
    assert os.pread(file, 20000, 0) == b"x" * 5000 + bytes(10000) + b"x" * 5000
    assert os.fstat(file).st_size == 20000


def test_punch_hole_says_what_the_kernel_said() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        punch_hole(-1, 0, 512)


def test_rename_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    with pytest.raises(FileExistsError):
        rename_new(str(old), str(new))
    monkeypatch.setattr("dmcopy.kernel.blkdev.RENAME_NOREPLACE", 1 << 20)  # EINVAL, as on old fs
    with pytest.raises(FileExistsError):
        rename_new(str(old), str(new))
    assert new.read_text() == "new"
    new.unlink()
    rename_new(str(old), str(new))
    assert new.read_text() == "old"


def test_syncfs_works_on_a_directory_and_tells_what_is_missing(tmp_path: Path) -> None:
    syncfs(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        syncfs(str(tmp_path / "none"))
