"""What is special to an image file; its promises are in tests/contract."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dmcopy.core.extent import Extent
from dmcopy.destinations import image
from dmcopy.destinations.base import Surroundings
from dmcopy.destinations.image import ImageDestination, ImageSession, is_being_written
from dmcopy.errors import DestinationFailed, Refused, UsageError
from dmcopy.kernel.command import Commander, launch_subprocess
from dmcopy.units import Sectors, to_bytes
from tests.contract.destination_promises import buffer, pattern
from tests.unit.kernel.tree import Tree

LENGTH = Sectors(4096)
SEGMENT = Extent(Sectors(0), Sectors(2048))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    host = Tree(tmp_path / "host")
    host.disk("sda", "8:0")
    return host


@pytest.fixture
def around(tree: Tree) -> Surroundings:
    return Surroundings(sysfs=tree.sysfs(), run=Commander(launch_subprocess), source="8:0")


@pytest.fixture
def db(tmp_path: Path) -> ImageDestination:
    return ImageDestination.parse(str(tmp_path / "db.img"))


def test_image_is_called_partial_until_complete(db: ImageDestination, around: Surroundings) -> None:
    with db.open(LENGTH, around) as session:
        assert os.path.exists(db.partial)
        assert not os.path.exists(db.path)
        assert is_being_written(db.partial)
        session.complete()
        assert os.path.exists(db.path)
    assert not os.path.exists(db.partial)
    assert os.stat(db.path).st_size == to_bytes(LENGTH)
    assert db.leftovers() == [db.partial]


def test_kept_image_is_gone_on_with(db: ImageDestination, around: Surroundings) -> None:
    second = Extent(SEGMENT.end, Sectors(2048))
    with db.open(LENGTH, around) as session:
        session.write(SEGMENT, buffer(pattern(SEGMENT)))
        session.keep()
        mark = session.mark
    assert os.path.exists(db.partial)
    again = replace(around, resume=mark)
    db.check(LENGTH, again)
    with db.open(LENGTH, again) as session:
        session.write(second, buffer(pattern(second)))
        session.complete()
    assert Path(db.path).read_bytes() == pattern(SEGMENT) + pattern(second)


def test_image_that_is_gone_on_with_stays_without_being_kept_again(
    db: ImageDestination, around: Surroundings
) -> None:
    with db.open(LENGTH, around) as session:
        session.keep()
        mark = session.mark
    with db.open(LENGTH, replace(around, resume=mark)):
        pass
    assert os.path.exists(db.partial)


def test_unfinished_image_that_is_gone_or_another_is_refused(
    db: ImageDestination, around: Surroundings
) -> None:
    with db.open(LENGTH, around) as session:
        session.keep()
        mark = session.mark
    again = replace(around, resume=mark)
    with (
        pytest.raises(Refused, match="not the file that the job was writing"),
        db.open(Sectors(LENGTH - 8), again),
    ):
        pass
    other = Path(f"{db.partial}2")
    other.write_bytes(Path(db.partial).read_bytes())
    other.rename(db.partial)
    with (
        pytest.raises(Refused, match="not the file that the job was writing"),
        db.open(LENGTH, again),
    ):
        pass
    os.unlink(db.partial)
    for look in (lambda: db.check(LENGTH, again), lambda: db.open(LENGTH, again).__enter__()):
        with pytest.raises(Refused, match="is gone; put it back"):
            look()


def test_image_that_was_completed_right_before_the_end_is_completed_again(
    db: ImageDestination, around: Surroundings
) -> None:
    """Killed between the rename and the word about it: it is ours, whatever its name."""
    with db.open(LENGTH, around) as session:
        session.keep()
        mark = session.mark
        session.complete()
    again = replace(around, resume=mark)
    db.check(LENGTH, again)
    with db.open(LENGTH, again) as session:
        session.complete()
    assert os.path.exists(db.path)
    assert not os.path.exists(db.partial)
    other = Path(f"{db.path}2")
    other.write_bytes(Path(db.path).read_bytes())
    other.rename(db.path)
    with pytest.raises(Refused, match="exists; remove it"):
        db.check(LENGTH, again)


def test_image_is_sparse_where_nothing_was_written(
    db: ImageDestination, around: Surroundings
) -> None:
    with db.open(Sectors(1 << 21), around) as session:
        session.zero(Extent(Sectors(0), Sectors(1 << 21)))
        session.write(SEGMENT, buffer(pattern(SEGMENT)))
        session.complete()
    assert os.stat(db.path).st_size == 1 << 30
    assert os.stat(db.path).st_blocks < 2 * SEGMENT.length


def test_zeroes_are_not_written_over_holes_where_there_is_no_punching(
    db: ImageDestination, around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(image, "punch_hole", refuse)
    with db.open(LENGTH, around) as session:
        session.zero(SEGMENT)
        session.complete()
    assert os.stat(db.path).st_blocks == 0


def test_image_is_readable_by_its_owner_only(db: ImageDestination, around: Surroundings) -> None:
    with db.open(LENGTH, around) as session:
        session.complete()
    assert os.stat(db.path).st_mode & 0o777 == 0o600


def test_existing_file_is_never_overwritten(db: ImageDestination, around: Surroundings) -> None:
    Path(db.path).write_text("mine")
    with pytest.raises(Refused, match=r"db\.img exists; remove it or choose another name"):
        db.check(LENGTH, around)
    with pytest.raises(Refused), db.open(LENGTH, around):
        pass
    assert Path(db.path).read_text() == "mine"


def test_file_that_came_meanwhile_is_not_overwritten(
    db: ImageDestination, around: Surroundings
) -> None:
    def race() -> None:
        with db.open(LENGTH, around) as session:
            Path(db.path).write_text("mine")
            session.complete()

    with pytest.raises(DestinationFailed, match="cannot rename"):
        race()
    assert Path(db.path).read_text() == "mine"
    assert not os.path.exists(db.partial)


def test_dangling_link_is_refused(db: ImageDestination, around: Surroundings) -> None:
    os.symlink("/nowhere", db.path)
    with pytest.raises(Refused, match="exists"):
        db.check(LENGTH, around)


def test_partial_file_of_a_killed_copy_is_told_from_a_living_one(
    db: ImageDestination, around: Surroundings
) -> None:
    Path(db.partial).write_text("half")
    with pytest.raises(Refused, match=r"left behind by a copy that was killed; remove it"):
        db.check(LENGTH, around)
    os.unlink(db.partial)
    with (
        db.open(LENGTH, around),
        pytest.raises(Refused, match="being written by another job"),
    ):
        db.check(LENGTH, around)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none/db.img", "there is no directory"),
        ("folder", "is a directory"),
        ("host/dev/sdz", "would be a file under"),
        ("link/sdz", "would be a file under"),
    ],
)
def test_places_that_are_refused(tmp_path: Path, around: Surroundings, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "host" / "dev")
    with pytest.raises(Refused, match=why):
        ImageDestination.parse(str(tmp_path / name)).check(LENGTH, around)


def test_image_on_the_source_is_refused(tree: Tree, tmp_path: Path) -> None:
    part = tree.partition("8:0", 1, "8:1")
    dm = tree.disk("dm-0", "253:0", slaves=(part,))
    tree.put_file(str(tmp_path), dm)
    for source in ("8:0", part, dm):
        around = Surroundings(sysfs=tree.sysfs(), run=Commander(launch_subprocess), source=source)
        with pytest.raises(Refused, match="lies on the source"):
            ImageDestination.parse(str(tmp_path / "x")).check(LENGTH, around)


def test_image_on_the_file_system_that_holds_the_sources_file_is_fine(
    tree: Tree, tmp_path: Path
) -> None:
    tree.put_file(str(tmp_path), "8:0")
    tree.put_file("/srv/source.img", "8:0")
    loop = tree.loop(0, "/srv/source.img")
    around = Surroundings(sysfs=tree.sysfs(), run=Commander(launch_subprocess), source=loop)
    ImageDestination.parse(str(tmp_path / "x")).check(LENGTH, around)


def test_image_on_a_device_of_the_job_is_refused(tree: Tree, tmp_path: Path) -> None:
    cow = tree.disk("sdb", "8:16")
    tree.put_file(str(tmp_path), cow)
    around = Surroundings(
        sysfs=tree.sysfs(),
        run=Commander(launch_subprocess),
        source="8:0",
        spare=frozenset({cow}),
    )
    with pytest.raises(Refused, match="a device that this job uses"):
        ImageDestination.parse(str(tmp_path / "x")).check(LENGTH, around)


def test_too_little_room_is_a_warning_because_holes_take_none(
    db: ImageDestination, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        db.check(Sectors(1 << 42), around)
    assert "the image needs up to 2.0 PiB" in caplog.text


def test_full_file_system_is_said_with_the_way_out(
    db: ImageDestination, around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: memoryview, _offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image, "pwrite_full", full)
    with (
        db.open(LENGTH, around) as session,
        pytest.raises(DestinationFailed, match=r"at byte 0: No space left on device; make room"),
    ):
        session.write(SEGMENT, buffer(pattern(SEGMENT)))


def test_size_that_the_file_system_cannot_hold_fails_before_anything_is_copied(
    db: ImageDestination, around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_big(_fd: int, _length: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", too_big)
    with (
        pytest.raises(DestinationFailed, match="its size of 2097152 bytes: File too large"),
        db.open(LENGTH, around),
    ):
        pass
    assert not os.path.exists(db.partial)


def test_page_cache_is_used_only_where_direct_is_refused(
    db: ImageDestination, around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "_works", lambda _fd: False)
    with db.open(LENGTH, around) as session:
        assert isinstance(session, ImageSession)
        assert not session.direct


def test_names_that_are_no_file_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="needs the path"):
        ImageDestination.parse("")
    with pytest.raises(UsageError, match="is a directory"):
        ImageDestination.parse("/srv/")
