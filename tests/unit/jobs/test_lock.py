"""The right to work on a job."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.lock import JobLock, holder, wait_free


@contextmanager
def _held_by_child(directory: Path) -> Iterator[int]:
    """Let another process hold the lock of job a; killed at the end if it still lives."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with JobLock(directory, "a"):
            os.write(tell, b"x")
            time.sleep(60)
        os._exit(0)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"x"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)


def test_lock_is_held_by_one_process_and_says_by_whom(tmp_path: Path) -> None:
    with JobLock(tmp_path, "a"):
        assert holder(tmp_path, "a") == os.getpid()
        with pytest.raises(Refused, match=f"pid {os.getpid()}"), JobLock(tmp_path, "a"):
            pass
        assert holder(tmp_path, "b") is None
    assert holder(tmp_path, "a") is None
    with JobLock(tmp_path, "a"):
        pass


def test_nobody_holds_a_lock_that_never_was(tmp_path: Path) -> None:
    assert holder(tmp_path / "none", "a") is None
    assert wait_free(tmp_path / "none", "a", 0.0)


def test_lock_stays_when_another_descriptor_of_its_file_is_closed(tmp_path: Path) -> None:
    with JobLock(tmp_path, "a"):
        os.close(os.open(tmp_path / "a", os.O_RDWR))
        assert holder(tmp_path, "a") == os.getpid()
        with pytest.raises(Refused), JobLock(tmp_path, "a"):
            pass


def test_asking_never_gets_in_the_way_of_a_job_that_starts(tmp_path: Path) -> None:
    """With flock, which had to be taken to be asked for, this failed within some hundred."""
    end = threading.Event()

    def ask() -> None:
        while not end.is_set():
            holder(tmp_path, "a")

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(300):
            with JobLock(tmp_path, "a"):
                pass
    finally:
        end.set()
        for thread in asking:
            thread.join()


@pytest.mark.forks
def test_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    with _held_by_child(tmp_path) as pid:
        assert holder(tmp_path, "a") == pid
        with pytest.raises(Refused, match=f"pid {pid}"), JobLock(tmp_path, "a"):
            pass
        os.kill(pid, signal.SIGKILL)
        assert wait_free(tmp_path, "a", 10.0, poll=0.01)
        with JobLock(tmp_path, "a"):
            assert holder(tmp_path, "a") == os.getpid()


@pytest.mark.forks
def test_waiting_ends_when_the_time_is_up_or_the_holder_dies(tmp_path: Path) -> None:
    with _held_by_child(tmp_path) as pid:
        began = time.monotonic()
        assert not wait_free(tmp_path, "a", 0.2, poll=0.01)
        assert 0.2 <= time.monotonic() - began < 5
        killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
        killer.start()
        assert wait_free(tmp_path, "a", None, poll=0.01)
        assert time.monotonic() - began >= 0.4
        killer.join()


def test_holder_that_has_not_written_its_pid_yet_is_a_holder(tmp_path: Path) -> None:
    with JobLock(tmp_path, "a"):
        os.truncate(tmp_path / "a", 0)
        assert holder(tmp_path, "a") == 0
        with pytest.raises(Refused, match=r"pid \?"), JobLock(tmp_path, "a"):
            pass


def test_place_that_cannot_be_asked_is_not_taken_for_free(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DmcopyError, match="cannot tell who works on job a"):
        holder(tmp_path / "file", "a")
    with pytest.raises(DmcopyError, match="cannot lock job a"), JobLock(tmp_path / "file", "a"):
        pass
