"""Freeze and thaw a mounted file system, as fsfreeze(8) does; starts no program.

A frozen file system is written out and clean, and every write to it waits until it is thawed.

Kernel: include/uapi/linux/fs.h (FIFREEZE, FITHAW), fs/ioctl.c (ioctl_fsfreeze: EOPNOTSUPP where
the file system cannot, EBUSY where it is frozen already), fs/super.c (freeze_super: waits for
writes that are under way, uninterruptibly; thaw_super: EINVAL where it is not frozen).
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

FIFREEZE: Final = 0xC0045877  # _IOWR('X', 119, int)
FITHAW: Final = 0xC0045878  # _IOWR('X', 120, int)


def open_mount(point: str) -> int:
    """Open a mount point for `freeze` and `thaw`; the caller closes.  Raises OSError."""
    return os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def freeze(fd: int) -> None:
    """Write the file system out and hold all writes to it; raises OSError."""
    fcntl.ioctl(fd, FIFREEZE, 0)


def thaw(fd: int) -> None:
    """Let writes go on; raises OSError, EINVAL where it is not frozen."""
    fcntl.ioctl(fd, FITHAW, 0)
