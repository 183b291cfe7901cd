"""udev cookies: wait until udev has dealt with a change of a dm device of ours.

A cookie is a System V semaphore whose key begins with 0x0D4D.  Its low 16 bits go to the
kernel with the ioctl and come back to udev in DM_COOKIE; the last rule for the event
(95-dm-notify.rules: ``dmsetup udevcomplete``) counts the semaphore down, and we wait for zero.

A semaphore outlives its process, so its key is recorded as a file *before* it is made, in a
directory that does not outlive a boot (/run): what was killed leaves a record to clean up by.

Follows: lvm2 libdm/libdm-common.c (_udev_notify_sem_create, dm_udev_wait),
libdm/libdevmapper.h (DM_COOKIE_MAGIC, DM_UDEV_*).  System calls: semget(2), semctl(2), semop(2).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

UDEV_CONTROL: Final = "/run/udev/control"
DM_COOKIE_MAGIC: Final = 0x0D4D

DM_UDEV_DISABLE_DM_RULES_FLAG: Final = 0x01
DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG: Final = 0x02
DM_UDEV_DISABLE_DISK_RULES_FLAG: Final = 0x04
DM_UDEV_DISABLE_OTHER_RULES_FLAG: Final = 0x08
DM_UDEV_LOW_PRIORITY_FLAG: Final = 0x10
DM_UDEV_DISABLE_LIBRARY_FALLBACK: Final = 0x20
DM_UDEV_PRIMARY_SOURCE_FLAG: Final = 0x40
DM_UDEV_FLAGS_SHIFT: Final = 16

# What every event of a device of ours carries in event_nr: its /dev/mapper link is made, nobody
# scans it, and no /dev/disk link leads to it.
UDEV_FLAGS: Final = (
    DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
    | DM_UDEV_DISABLE_DISK_RULES_FLAG
    | DM_UDEV_DISABLE_OTHER_RULES_FLAG
    | DM_UDEV_LOW_PRIORITY_FLAG
    | DM_UDEV_PRIMARY_SOURCE_FLAG
) << DM_UDEV_FLAGS_SHIFT
# What makes a device visible, and keeps it so over a later `udevadm trigger` (55-dm.rules).
VISIBLE_FLAGS: Final = DM_UDEV_PRIMARY_SOURCE_FLAG << DM_UDEV_FLAGS_SHIFT

# include/uapi/linux/ipc.h, include/uapi/linux/sem.h
_IPC_CREAT: Final = 0o1000
_IPC_EXCL: Final = 0o2000
_IPC_RMID: Final = 0
_GETVAL: Final = 12
_SETVAL: Final = 16

_TRIES: Final = 64
_RECORD: Final = re.compile(r"(?P<key>0d4d[0-9a-f]{4})-(?P<pid>[0-9]+)")


class sembuf(ctypes.Structure):
    """One operation on a semaphore (struct sembuf)."""

    _fields_ = (
        ("sem_num", ctypes.c_ushort),
        ("sem_op", ctypes.c_short),
        ("sem_flg", ctypes.c_short),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def udev_runs() -> bool:
    """Tell whether somebody answers uevents, in the way libdm does."""
    return "DM_DISABLE_UDEV" not in os.environ and os.path.exists(UDEV_CONTROL)


def process_is_alive(pid: int) -> bool:
    """Tell whether there is a process *pid*."""
    return os.path.exists(f"/proc/{pid}")


class Leftover(NamedTuple):
    """The record of a cookie: its key, and the process that made it."""

    key: int
    pid: int


class Semaphores:
    """System V semaphore sets of one semaphore, by libc; raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _checked(self, value: int) -> int:
        if value < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return value

    def find(self, key: int) -> int | None:
        """Give the id of the set with *key*, None when there is none."""
        try:
            return self._checked(self._libc.semget(key, 0, 0))
        except FileNotFoundError:
            return None

    def make(self, key: int) -> int:
        """Make a set of value 1; raises FileExistsError."""
        semid = self._checked(self._libc.semget(key, 1, 0o600 | _IPC_CREAT | _IPC_EXCL))
        try:
            self._checked(self._libc.semctl(semid, 0, _SETVAL, ctypes.c_long(1)))
        except OSError:
            self.destroy(semid)
            raise
        return semid

    def value(self, semid: int) -> int:
        """Give how many events are awaited."""
        return self._checked(self._libc.semctl(semid, 0, _GETVAL))

    def wait_for_zero(self, semid: int, timeout: float) -> bool:
        """Wait until the value is 0 or the set is gone; False when the time was up."""
        end = time.monotonic() + timeout
        zero = sembuf(0, 0, 0)
        while True:
            left = max(0.0, end - time.monotonic())
            limit = _Timespec(int(left), int(left % 1 * 1e9))
            try:
                self._checked(
                    self._libc.semtimedop(semid, ctypes.byref(zero), 1, ctypes.byref(limit))
                )
            except OSError as exc:
                if exc.errno == errno.EINTR:
                    continue
                if exc.errno == errno.EAGAIN:
                    return False
                if exc.errno in (errno.EIDRM, errno.EINVAL):
                    return True  # `dmsetup udevcomplete_all`: an administrator ended the wait
                raise
            return True

    def destroy(self, semid: int) -> None:
        """Remove the set; whoever waits for it goes on."""
        with suppress(OSError):
            self._checked(self._libc.semctl(semid, 0, _IPC_RMID, ctypes.c_long(0)))


class Cookie:
    """One cookie, for one uevent."""

    def __init__(self, semaphores: Any, key: int, semid: int, limit: float) -> None:
        self.key = key
        self._semaphores = semaphores
        self._semid = semid
        self._limit = limit

    @property
    def value(self) -> int:
        """Give what goes into event_nr, beside the flags."""
        return self.key & 0xFFFF

    def wait(self) -> bool:
        """Wait until udev has dealt with the event; False (and a warning) when it takes too long.

        Not an error: the change is made, only links in /dev may lag behind.
        """
        if self._semaphores.wait_for_zero(self._semid, self._limit):
            return True
        log.warning("udev has not answered within %g s, going on without it", self._limit)
        return False


class Cookies:
    """Makes cookies, and keeps a record of each in *directory* while it exists.

    *limit* is how long to wait for udev, in seconds.
    """

    def __init__(
        self, directory: str | Path, *, limit: float = 30.0, semaphores: Any = None
    ) -> None:
        self._directory = Path(directory)
        self._limit = limit
        self._semaphores = semaphores or Semaphores()

    @contextmanager
    def cookie(self) -> Iterator[Cookie]:
        """Give a new cookie; destroyed in every case at the end.  Raises OSError."""
        key, semid, record = self._make()
        try:
            yield Cookie(self._semaphores, key, semid, self._limit)
        finally:
            # the record goes last: killed in between, there is a record without a semaphore
            self._semaphores.destroy(semid)
            record.unlink(missing_ok=True)

    def _make(self) -> tuple[int, int, Path]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_TRIES):
            # 0 would be no cookie.  Not the module random or secrets: they take long to import.
            low = int.from_bytes(os.urandom(2), "little") or 1
            key = DM_COOKIE_MAGIC << 16 | low
            # looked for before it is recorded: a record must never name somebody else's
            if self._semaphores.find(key) is not None:
                continue
            record = self._directory / f"{key:08x}-{os.getpid()}"
            record.touch(mode=0o600)
            try:
                return key, self._semaphores.make(key), record
            except FileExistsError:
                record.unlink()
            except BaseException:
                record.unlink()
                raise
        raise OSError(errno.ENOSPC, "no free key for a udev cookie")

    def leftover(self) -> list[Leftover]:
        """List the recorded cookies, those in use as well."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        matches = (_RECORD.fullmatch(name) for name in names)
        return [Leftover(int(m["key"], 16), int(m["pid"])) for m in matches if m]

    def destroy_leftover(self, alive: Callable[[int], bool] = process_is_alive) -> list[Leftover]:
        """Destroy the cookies of processes that are not *alive*; give those records."""
        dead = [left for left in self.leftover() if not alive(left.pid)]
        for left in dead:
            semid = self._semaphores.find(left.key)
            if semid is not None:
                log.info("destroying udev cookie 0x%x that process %d left", left.key, left.pid)
                self._semaphores.destroy(semid)
            (self._directory / f"{left.key:08x}-{left.pid}").unlink(missing_ok=True)
        return dead
