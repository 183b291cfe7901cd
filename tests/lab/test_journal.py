"""The journal on media that are full, or that cannot be written at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.core.extent import Extent
from dmcopy.errors import DmcopyError
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.state import State
from dmcopy.units import Sectors
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for 512 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place))
    yield place
    sh("umount", str(place))


def _run(number: int) -> tuple[Extent, str]:
    return Extent(Sectors(8 * number), Sectors(8)), f"{number:064x}"


def test_journal_on_a_full_disk_says_so_and_stays_whole(small: Path) -> None:
    with Journal(small / "j") as journal:
        journal.define("a", {})
        count = 0
        with pytest.raises(DmcopyError, match="no space left"):  # noqa: PT012 (until it is full)
            while count < 10_000:
                journal.commit("a", [_run(number) for number in range(count, count + 100)])
                count += 100
        assert 0 < count < 10_000
        assert len(journal.done("a")) == count
    with Journal(small / "j") as journal:
        assert len(journal.done("a")) == count
    sh("mount", "-o", "remount,size=16m", str(small))
    with Journal(small / "j") as journal:
        journal.commit("a", [_run(count)])
        journal.retire("a")
        assert len(journal.done("a")) == count + 1


def test_journal_on_a_read_only_file_system_is_read(small: Path) -> None:
    with Journal(small / "j") as journal:
        journal.define("a", {"n": 1})
    sh("mount", "-o", "remount,ro", str(small))
    with Journal(small / "j", read_only=True) as journal:
        assert journal.state("a") is State.DEFINED
    with pytest.raises(DmcopyError, match="cannot use the journal"):
        Journal(small / "j")


def test_read_only_file_system_with_a_wal_is_not_half_believed(small: Path) -> None:
    with Journal(small / "other") as journal:
        journal.define("a", {"n": 1})
        for end in ("", "-wal"):
            shutil.copy(f"{small}/other{end}", f"{small}/j{end}")
    sh("mount", "-o", "remount,ro", str(small))
    with pytest.raises(DmcopyError, match="j-wal holds what was written last"):
        Journal(small / "j", read_only=True)
