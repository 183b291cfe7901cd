"""Holds the file systems on a device for an instant, with a dead man who lets go of them.

Not for a dm device: there the kernel freezes what is mounted when it swaps the table.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from dmcopy.errors import DmcopyError, HoldLimitExceeded
from dmcopy.kernel.blkdev import devno as devno_text
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.freeze import freeze, open_mount, thaw
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.own_code import helper
from dmcopy.kernel.priority import first_in_line
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack import md_thaw
from dmcopy.stack.hold import Instant
from dmcopy.stack.plan import signals_deferred
from dmcopy.stack.watch import ARMED, DONE

_START_SECONDS: Final = 30.0
_END_SECONDS: Final = 10.0


def file_systems(sysfs: Sysfs, devno: str) -> tuple[str, ...]:
    """Give a mount point of each file system on *devno* and on what lies on it, top first."""
    devices = sorted({devno, *sysfs.above(devno)}, key=lambda one: -len(sysfs.below(one)))
    points: list[str] = []
    for device in devices:
        for point in sysfs.mounts_of(device):
            if _leads_to(point, device):
                points.append(point)
                break
    return tuple(dict.fromkeys(points))


def _leads_to(point: str, devno: str) -> bool:
    """Tell whether *point* shows the file system of *devno*, and not one mounted over it."""
    try:
        number = os.stat(point).st_dev
    except OSError:
        return False
    return os.major(number) == 0 or devno_text(number) == devno  # 0: btrfs has no device number


class FrozenHold:
    """A hold of some file systems; `ready` first, `end` in every case.

    *limit* is the longest hold in seconds.
    """

    def __init__(self, mounts: Sequence[str], limit: float) -> None:
        self._mounts = tuple(mounts)
        self._limit = limit
        self._fds: list[int] = []
        self._process: Process | None = None

    def ready(self) -> None:
        """Open the mount points, and start the dead man; raises `DmcopyError` and OSError."""
        for mount in self._mounts:
            self._fds.append(open_mount(mount))
        if self._fds:
            self._process = _dead_man(self._fds, self._limit)

    def __call__(self, act: Callable[[], None]) -> Instant:
        """Do *act*, which is system calls only, while the file systems are frozen.

        Raises `HoldLimitExceeded` when the dead man had to thaw them, and what *act* raises;
        nothing is frozen then.
        """
        instant = self._hold(act)
        process = self._process
        if process is not None and process.stdout.readline().strip() != b"done":
            raise HoldLimitExceeded(
                f"{', '.join(self._mounts)} did not freeze within {self._limit:g} s; nothing is "
                "held; give more time with --hold-limit"
            )
        return instant

    def _hold(self, act: Callable[[], None]) -> Instant:
        lock_memory()
        frozen: list[int] = []
        with signals_deferred(), first_in_line():
            # From here to DONE: ioctls and one write to sysfs.  No program, no log, no journal.
            _say(self._process, ARMED)
            start = time.monotonic()
            begin_ns = time.time_ns()
            try:
                for fd in self._fds:
                    if _freeze(fd):
                        frozen.append(fd)
                act()
            finally:
                for fd in reversed(frozen):
                    with suppress(OSError):
                        thaw(fd)
                held = time.monotonic() - start
                _say(self._process, DONE)
        return Instant(begin_ns=begin_ns, held=held)

    def end(self) -> None:
        """End the dead man and close what was opened; twice is fine."""
        process, self._process = self._process, None
        try:
            _end(process)
        finally:
            while self._fds:
                os.close(self._fds.pop())


def _freeze(fd: int) -> bool:
    """Freeze; tell whether it is us who did: it is frozen already, or cannot be."""
    try:
        freeze(fd)
    except OSError as exc:
        if exc.errno in (errno.EBUSY, errno.EOPNOTSUPP, errno.ENOTTY):
            return False
        raise
    return True


def _dead_man(fds: Sequence[int], limit: float) -> Process:
    argv = helper(md_thaw.__name__, str(limit), *map(str, fds))
    process = start_process(argv, pass_fds=fds)
    ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    line = process.stdout.readline() if ready else b""
    if line.strip() != b"ready":
        _end(process)
        raise DmcopyError("the dead man did not start, so nothing was frozen")
    return process


def _say(process: Process | None, word: bytes) -> None:
    if process is not None:
        with suppress(BrokenPipeError):  # it is gone: what it says in the end, nothing, tells
            process.stdin.write(word)
            process.stdin.flush()


def _end(process: Process | None) -> None:
    if process is None:
        return
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(timeout=_END_SECONDS)
    finally:
        process.kill()
        process.stdout.close()


def thaw_left(mounts: Sequence[str]) -> list[str]:
    """Thaw what a killed control may have left frozen; gives the mount points that were."""
    thawed = []
    for mount in mounts:
        with suppress(OSError):  # EINVAL: it is not frozen
            fd = open_mount(mount)
            try:
                thaw(fd)
                thawed.append(mount)
            finally:
                os.close(fd)
    return thawed
