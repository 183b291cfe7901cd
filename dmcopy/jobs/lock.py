"""One process a job: a lock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from dmcopy.errors import DmcopyError, Refused


class JobLock:
    """The right to work on a job, held from ``with`` to its end.

    Raises `Refused` when another process has it.  The file stays: removing it would let a
    third process lock a file that nobody sees any more.
    """

    def __init__(self, directory: Path, job: str) -> None:
        self._path = directory / job
        self._job = job
        self._fd: int | None = None

    def __enter__(self) -> JobLock:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise DmcopyError(f"cannot lock job {self._job}: {exc}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise Refused(
                f"job {self._job} is being worked on by another dmcopy (pid {holder or '?'})",
                way_out=f"wait for it, or see: dmcopy status {self._job}",
            ) from exc
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def holder(directory: Path, job: str) -> int | None:
    """Give the pid of the process that works on *job*, None when nobody does."""
    try:
        fd = os.open(directory / job, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
    return None
