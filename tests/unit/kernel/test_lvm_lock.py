"""LVM's lock of a volume group, as LVM's commands take it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from dmcopy.kernel.lvm_lock import VgLocked, vg_locked, wait_for_vg


def taken(path: Path, how: int) -> int:
    """Have another open file hold the lock."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, how)
    return fd


def test_lock_keeps_lvms_commands_out_and_lets_them_in_again(tmp_path: Path) -> None:
    with vg_locked("vg0", directory=tmp_path):
        fd = os.open(tmp_path / "V_vg0", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_lock_that_another_holds_is_waited_for_and_then_told(tmp_path: Path, how: int) -> None:
    fd = taken(tmp_path / "V_vg0", how)
    with (
        pytest.raises(VgLocked, match="volume group vg0 is locked by another LVM command"),
        vg_locked("vg0", wait=0.1, directory=tmp_path),
    ):
        pass
    with pytest.raises(VgLocked):
        wait_for_vg("vg0", wait=0.1, directory=tmp_path)
    os.close(fd)
    wait_for_vg("vg0", wait=0.1, directory=tmp_path)


def test_lock_of_a_file_that_is_gone_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LVM's last command removes the file: who has opened it before must take the new one."""
    real = fcntl.flock
    removed: list[Path] = []

    def flock(fd: int, how: int) -> None:
        real(fd, how)
        if not removed:
            removed.append(tmp_path / "V_vg0")
            removed[0].unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with vg_locked("vg0", directory=tmp_path):
        assert (tmp_path / "V_vg0").exists()
        fd = os.open(tmp_path / "V_vg0", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            real(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_host_where_lvm_never_locked_anything_is_not_waited_for(tmp_path: Path) -> None:
    wait_for_vg("vg0", wait=0.1, directory=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
