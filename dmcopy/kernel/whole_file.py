"""Files that others read at any moment, or that a power cut must not spoil: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(
    path: Path, data: bytes, *, mode: int | None = None, is_durable: bool = True
) -> None:
    """Put *data* in place of the file at *path*, whose directory must be there.

    A new file, renamed: whoever reads has the old one or the new one.  *mode* whatever the umask
    is; None: what the umask leaves.  Durable (fsync of file and directory) when it returns, unless
    that is not asked.  Raises OSError, and then the file is what it was.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")  # hidden from who looks for a suffix
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        new.unlink(missing_ok=True)  # of a process of our number that was killed
        fd = os.open(new, flags, 0o600 if mode is not None else 0o666)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if mode is not None:
                os.fchmod(fd, mode)
            if is_durable:
                os.fsync(fd)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if is_durable:
        sync_directory(path.parent)


def sync_directory(path: Path | str) -> None:
    """Make what was renamed, made or removed in a directory durable; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
