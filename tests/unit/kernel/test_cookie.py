"""Cookies with real semaphores (they need no root) and with ones of our own making."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dmcopy.kernel import cookie as module
from dmcopy.kernel.cookie import UDEV_FLAGS, Cookies, Leftover, Semaphores, udev_runs


def complete(key: int) -> None:
    """Do what ``dmsetup udevcomplete`` does for the last rule of an event."""
    semaphores = Semaphores()
    semid = semaphores.find(key)
    assert semid is not None
    down = module.sembuf(0, -1, 0)
    semaphores._checked(semaphores._libc.semop(semid, ctypes.byref(down), 1))


def test_flags_are_those_of_a_hidden_device() -> None:
    # subsystem, disk, other rules off; low priority; primary source: /dev/mapper link is kept
    assert UDEV_FLAGS == 0x5E << 16


def test_cookie_is_recorded_before_it_exists_and_gone_after(tmp_path: Path) -> None:
    cookies = Cookies(tmp_path / "made" / "here")
    with cookies.cookie() as cookie:
        assert cookie.key >> 16 == 0x0D4D
        assert cookie.value == cookie.key & 0xFFFF
        assert cookies.leftover() == [Leftover(cookie.key, os.getpid())]
        semid = Semaphores().find(cookie.key)
        assert semid is not None
        assert Semaphores().value(semid) == 1
    assert cookies.leftover() == []
    assert Semaphores().find(cookie.key) is None


def test_cookie_is_destroyed_after_an_error(tmp_path: Path) -> None:
    cookies = Cookies(tmp_path)
    with pytest.raises(KeyError), cookies.cookie() as cookie:
        raise KeyError
    assert cookies.leftover() == []
    assert Semaphores().find(cookie.key) is None


def test_wait_ends_when_udev_has_answered(tmp_path: Path) -> None:
    with Cookies(tmp_path, limit=20).cookie() as cookie:
        timer = threading.Timer(0.2, complete, (cookie.key,))
        started = time.monotonic()
        timer.start()
        assert cookie.wait()
        assert 0.1 < time.monotonic() - started < 10
        timer.join()


def test_answer_that_came_before_the_wait_counts(tmp_path: Path) -> None:
    with Cookies(tmp_path, limit=20).cookie() as cookie:
        complete(cookie.key)
        assert cookie.wait()


def test_wait_gives_up_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Cookies(tmp_path, limit=0.1).cookie() as cookie:
        assert not cookie.wait()
    assert "udev has not answered" in caplog.text


def test_wait_ends_when_an_administrator_destroys_the_cookie(tmp_path: Path) -> None:
    semaphores = Semaphores()
    with Cookies(tmp_path, limit=20).cookie() as cookie:
        semid = semaphores.find(cookie.key)
        assert semid is not None
        timer = threading.Timer(0.1, semaphores.destroy, (semid,))
        timer.start()
        assert cookie.wait()
        timer.join()


def test_what_a_killed_process_left_is_destroyed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom dmcopy.kernel.cookie import Cookies\n"
        "with Cookies(sys.argv[1]).cookie(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    process.wait()
    cookies = Cookies(tmp_path)
    (left,) = cookies.leftover()
    assert left.pid == process.pid
    assert Semaphores().find(left.key) is not None
    with cookies.cookie() as used:
        assert cookies.destroy_leftover() == [left]
        assert cookies.leftover() == [Leftover(used.key, os.getpid())]
    assert Semaphores().find(left.key) is None


def test_record_without_a_semaphore_is_only_taken_away(tmp_path: Path) -> None:
    (tmp_path / "0d4d1234-1").touch()
    (tmp_path / "README").touch()
    cookies = Cookies(tmp_path)
    assert cookies.destroy_leftover(alive=lambda pid: False) == [Leftover(0x0D4D1234, 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["README"]


def test_nothing_is_left_over_where_there_is_no_directory(tmp_path: Path) -> None:
    assert Cookies(tmp_path / "none").leftover() == []


class Taken(Semaphores):
    """As if others had made a cookie with the first keys that we try."""

    def __init__(self, found: int, raced: int) -> None:
        super().__init__()
        self._found, self._raced = found, raced
        self.records: list[list[str]] = []
        self.directory = Path()

    def find(self, key: int) -> int | None:
        self._found -= 1
        return 1 if self._found >= 0 else None

    def make(self, key: int) -> int:
        self._raced -= 1
        if self._raced >= 0:
            raise FileExistsError
        self.records.append(os.listdir(self.directory))
        return super().make(key)


def test_cookie_of_somebody_else_is_never_recorded(tmp_path: Path) -> None:
    taken = Taken(found=3, raced=2)
    taken.directory = tmp_path
    with Cookies(tmp_path, semaphores=taken).cookie() as cookie:
        assert taken.records == [[f"{cookie.key:08x}-{os.getpid()}"]]
    assert os.listdir(tmp_path) == []


def test_udev_runs_only_with_its_socket_and_unless_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "control"
    monkeypatch.setattr(module, "UDEV_CONTROL", str(control))
    monkeypatch.delenv("DM_DISABLE_UDEV", raising=False)
    assert not udev_runs()
    control.touch()
    assert udev_runs()
    monkeypatch.setenv("DM_DISABLE_UDEV", "1")
    assert not udev_runs()
