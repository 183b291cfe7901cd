"""A file is put in place whole, or is what it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.kernel.whole_file import write_whole


def test_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one")
    with path.open("rb") as reader:  # whoever has it open keeps what he has
        write_whole(path, b"two")
        assert reader.read() == b"one"
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mode", "found"), [(0o644, 0o644), (0o600, 0o600), (None, 0o640)])
def test_mode_is_the_one_that_is_asked_for(tmp_path: Path, mode: int | None, found: int) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == found


def test_what_somebody_put_in_the_place_of_the_new_file_is_not_written_to(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"of somebody else")
    (tmp_path / f".file.{os.getpid()}").symlink_to(other)
    write_whole(tmp_path / "file", b"ours", mode=0o600)
    assert other.read_bytes() == b"of somebody else"
    assert not (tmp_path / "file").is_symlink()


def test_failure_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one")

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_whole(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_durable", [True, False])
def test_file_and_directory_are_synced_when_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_durable: bool
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "file", b"x", is_durable=is_durable)
    expected = [str(tmp_path / f".file.{os.getpid()}"), str(tmp_path)] if is_durable else []
    assert synced == expected
