"""The log of dm-log-writes is read, and a disk replayed, from a log that a kernel wrote.

On a disk of zeroes: a at sector 0, b at 3 and 4, flush, mark, c at 0, d at 7 (FUA), flush, e at 9,
flush, discard, f at 3.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuts.logwrites import Entry, Flags, Replay, read_log

LOG = Path(__file__).parents[1] / "data" / "dm-log-writes-6.1.176.gz"
SECTOR = 512


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "log"
    path.write_bytes(gzip.decompress(LOG.read_bytes()))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


class Disk:
    """A replayed disk, shown as one letter a sector."""

    def __init__(self, log: int, path: Path) -> None:
        path.write_bytes(bytes(10 * SECTOR))
        self._path = path
        self._fd = os.open(path, os.O_RDWR)
        self.replay = Replay(log, self._fd)

    def after(self, count: int, *, cache: str) -> str:
        """Replay to *count* entries; of the writes in the cache those of *cache* survive."""
        self.replay.to(count, lambda entry: self._letter(entry) in cache)
        data = self._path.read_bytes()
        return bytes(data[at] or ord(".") for at in range(0, len(data), SECTOR)).decode()

    def _letter(self, entry: Entry) -> str:
        number = self.replay.entries.index(entry)
        return {0: "a", 1: "b", 5: "c", 7: "e", 10: "f"}[number]

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def disk(log: int, tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(log, tmp_path / "disk")
    yield disk
    disk.close()


def test_entries_are_what_was_done(log: int) -> None:
    entries = read_log(log)
    assert [(entry.offset // SECTOR, entry.length // SECTOR) for entry in entries] == [
        (0, 1), (3, 2), (0, 0), (0, 0), (7, 1), (0, 1), (0, 0), (9, 1), (0, 0), (64, 8), (3, 1),
        (0, 0),
    ]  # fmt: skip
    assert [entry.mark for entry in entries if entry.mark] == ["one", "dm-log-writes-end"]
    assert entries[4].flags == Flags.FUA
    assert [number for number, entry in enumerate(entries) if not entry.writes] == [
        2, 3, 6, 8, 9, 11,
    ]  # fmt: skip


def test_everything_replayed_is_the_disk(disk: Disk) -> None:
    assert disk.after(12, cache="abcdef") == "c..fb..d.e"


def test_what_was_flushed_is_there_and_the_cache_is_lost(disk: Disk) -> None:
    assert disk.after(2, cache="") == ".........."
    assert disk.after(3, cache="") == "a..bb....."
    assert disk.after(11, cache="") == "c..bb..d.e"


def test_fua_survives_without_a_flush(disk: Disk) -> None:
    assert disk.after(6, cache="") == "a..bb..d.."


def test_any_part_of_the_cache_may_survive(disk: Disk) -> None:
    assert disk.after(2, cache="b") == "...bb....."
    assert disk.after(6, cache="c") == "c..bb..d.."


def test_what_survived_one_failure_is_not_there_in_the_next(disk: Disk) -> None:
    assert disk.after(6, cache="c") == "c..bb..d.."
    assert disk.after(6, cache="") == "a..bb..d.."


def test_log_that_was_cut_has_more_than_its_super_block_says(log: int) -> None:
    whole = read_log(log)
    os.pwrite(log, (4).to_bytes(8, "little"), 16)
    os.ftruncate(log, os.fstat(log).st_size + SECTOR)  # what the device held before
    assert read_log(log) == whole[:4]
    assert read_log(log, cut=True) == whole


def test_log_that_is_none_or_torn_is_refused(log: int) -> None:
    os.ftruncate(log, 4096)
    with pytest.raises(ValueError, match="in the middle of an entry"):
        read_log(log)
    os.pwrite(log, b"x", 0)
    with pytest.raises(ValueError, match="no log of dm-log-writes"):
        read_log(log)
