"""One process a job: a lock that the kernel drops when its holder dies, however it dies.

An open file description lock (fcntl(2)): unlike flock it can be asked for without being taken,
so nobody who looks is in the way of a job that starts; unlike the older POSIX locks it stays
when another descriptor of the same file is closed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from dmcopy.errors import DmcopyError, Refused

# struct flock, 64-bit offsets (include/uapi/asm-generic/fcntl.h):
#   short l_type, short l_whence, off_t l_start, off_t l_len (0: to the end), pid_t l_pid (0)
_FLOCK: Final = struct.Struct("@hhqqi0q")
_WHOLE: Final = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


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
        fd: int | None = None
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)
        except OSError as exc:
            raise self._not_locked(fd, exc) from exc
        self._fd = fd
        return self

    def _not_locked(self, fd: int | None, exc: OSError) -> DmcopyError:
        """Close *fd*; give the error that says who has the lock, or what went wrong."""
        pid = 0
        if fd is not None:
            pid = _pid_in(fd)
            os.close(fd)
        if isinstance(exc, BlockingIOError):
            return Refused(
                f"job {self._job} is being worked on by another dmcopy (pid {pid or '?'})",
                way_out=f"wait for it, or see: dmcopy status {self._job}",
            )
        return DmcopyError(f"cannot lock job {self._job}: {exc}")

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
    """Give the pid of the process that works on *job*, None when nobody does.

    Takes nothing, not for a moment.  0 where the holder has not written its pid yet.  Raises
    `DmcopyError` when it cannot be known.
    """
    try:
        fd = os.open(directory / job, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise DmcopyError(f"cannot tell who works on job {job}: {exc}") from exc
    try:
        # The kernel puts the lock that is in the way there, else it writes F_UNLCK.
        answer: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE)
        return None if _FLOCK.unpack(answer)[0] == fcntl.F_UNLCK else _pid_in(fd)
    finally:
        os.close(fd)


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else 0


def wait_free(directory: Path, job: str, timeout: float | None, poll: float = 0.1) -> bool:
    """Wait until nobody works on *job*; tell whether that came in *timeout* seconds.

    None waits for ever.  Looks every *poll* seconds, so the job may be taken again by now.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while holder(directory, job) is not None:
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(poll)
    return True
