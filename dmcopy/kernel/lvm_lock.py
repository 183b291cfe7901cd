"""LVM's lock of a volume group: while it is held no LVM command changes a table of it.

LVM's commands take ``V_<group>`` in the locking directory with flock: shared to read, exclusive to
change (lib/locking/file_locking.c, lib/misc/lvm-flock.c).  Whoever gets it must look whether the
file is still the one of that name, for the last one removes it.

Not for volume groups that several hosts share (lvmlockd): those are refused as sources.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dmcopy.errors import DmcopyError

DIRECTORY: Final = Path("/run/lock/lvm")
_PAUSE_SECONDS: Final = 0.05
WAIT_SECONDS: Final = 30.0


class VgLocked(DmcopyError):
    """Another LVM command has the volume group."""

    kind = "lvm-locked"


@contextmanager
def vg_locked(
    vg: str, *, wait: float = WAIT_SECONDS, directory: Path = DIRECTORY
) -> Iterator[None]:
    """Hold the lock of *vg*; raises `VgLocked` when it was not to be had within *wait* seconds."""
    fd = _take(directory / f"V_{vg}", wait, vg)
    try:
        yield
    finally:
        # Without removing the file, as LVM does: another may wait for it.
        os.close(fd)


def wait_for_vg(vg: str, *, wait: float = WAIT_SECONDS, directory: Path = DIRECTORY) -> None:
    """Wait until no LVM command has *vg*; raises `VgLocked` after *wait* seconds.

    So that a command of ours does not wait for ever, and need not be killed.
    """
    if directory.is_dir():
        with vg_locked(vg, wait=wait, directory=directory):
            pass


def _take(path: Path, wait: float, vg: str) -> int:
    end = time.monotonic() + wait
    while True:
        with suppress(FileNotFoundError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(fd, path):
                    return fd
            os.close(fd)
        if time.monotonic() >= end:
            raise VgLocked(
                f"volume group {vg} is locked by another LVM command for more than {wait:g} s; "
                "wait for it, or see what hangs: ps -C lvm,lvs,lvcreate,lvextend,pvmove"
            )
        time.sleep(_PAUSE_SECONDS)


def _is_same(fd: int, path: Path) -> bool:
    """Tell whether the open file is the one of that name now."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
