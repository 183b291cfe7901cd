"""Where the processes that a job starts get dmcopy's code from.

A job runs for hours, and starts helpers when it needs them: dead men, the watcher of a brake,
keepers of hooks, workers.  Were they imported from where dmcopy is installed, an upgrade in
mid-copy would give the job helpers of another version, which may expect other words, or half of
one, and that while an origin is about to be suspended.  So a job keeps the package as it was when
the job began, below the runtime directory, once for all jobs of a version, and starts them from
there.

What a job's own process needs it has imported before it begins: tests/unit/test_late_imports.py.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import dmcopy

log = logging.getLogger(__name__)

_PACKAGE: Final = Path(dmcopy.__file__).parent
_NEW: Final = ".new-"
_kept: Final[list[Path]] = []  # the package directories of `kept` that are entered


def helper(module: str, *words: str) -> list[str]:
    """Give the words that run *module* of dmcopy as a program: ``python -m``, with this very code.

    Never from the current directory (``-P``), where whoever may write to it could put a module.
    """
    package = next((path for path in _kept[-1:] if (path / "helper.py").exists()), _PACKAGE)
    return [sys.executable, "-P", str(package / "helper.py"), module, *words]


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Within: what `helper` gives is the package as it is now, from a copy of it in *folder*.

    Copies that nobody uses any more are removed.  Where there can be none (no room, read-only) it
    is what is installed, as outside.
    """
    try:
        fd, package = _hold(folder)
    except OSError as exc:
        log.debug("no copy of the package in %s: %s", folder, exc)
        yield
        return
    _kept.append(package)
    try:
        yield
    finally:
        _kept.pop()
        os.close(fd)


def _hold(folder: Path) -> tuple[int, Path]:
    """Make the copy, or take the one that is there; gives a descriptor that holds its lock."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / _signature()
    while True:
        try:
            fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = _copy(target)
        else:
            fcntl.flock(fd, fcntl.LOCK_SH)
        if _is(fd, target):
            _remove_others(target)
            return fd, target / _PACKAGE.name
        os.close(fd)  # it was removed in between, or another job was first


def _copy(target: Path) -> int:
    """Copy the package; gives a descriptor that holds the lock of the copy."""
    new = target.with_name(f"{_NEW}{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)  # of a process of the same number, which was killed
    new.mkdir(mode=0o700)
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        # with the times of the sources, by which Python knows that its bytecode is of them
        shutil.copytree(_PACKAGE, new / _PACKAGE.name)
        try:
            new.rename(target)
        except OSError as exc:
            if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another job was first
                raise
    except BaseException:
        os.close(fd)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return fd


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _remove_others(target: Path) -> None:
    for entry in target.parent.iterdir():
        if entry == target:
            continue
        with suppress(OSError):
            fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                gone = entry.with_name(f"{_NEW}{os.getpid()}")
                entry.rename(gone)  # at once: nobody takes what is half there
                shutil.rmtree(gone, ignore_errors=True)
            finally:
                os.close(fd)


def _signature() -> str:
    """Give a name that no other state of the package has: the kernel's times of all its files.

    An upgrade puts new files in place of the old ones, also where their contents are the same.
    """
    seen = hashlib.sha256()
    for directory, folders, files in os.walk(_PACKAGE):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(files):
            path = os.path.join(directory, name)
            stat = os.stat(path)
            seen.update(f"{path}\0{stat.st_ino} {stat.st_size} {stat.st_ctime_ns}\n".encode())
    return f"{dmcopy.__version__}-{seen.hexdigest()[:16]}"
