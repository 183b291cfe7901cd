"""Which other processes have a device open, from /proc: reads only, starts no program.

The kernel's own users (mounts, swap, holders) have no process; `sysfs` knows of those.
A host may have a hundred thousand descriptors: one readlink(2) each, and nothing else for
those that lead to no device.

Document: proc(5) for fd, fdinfo and comm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator


def openers(
    proc: str, is_device: Callable[[str], bool], *, writing: bool = False
) -> list[tuple[int, str]]:
    """Give the others (pid, command name) that have a descriptor for which *is_device* holds.

    *is_device* gets the path of a descriptor's link, and is asked only of links to a path with
    ``/dev/`` in it.  With *writing*, only those that may write.  As far as we may look: only
    root sees all.  A process that ends meanwhile is left out.
    """
    found = []
    pids = {int(name) for name in _names(proc) if name.isdigit()} - {os.getpid()}
    for pid in sorted(pids):
        folder = f"{proc}/{pid}"
        if any(
            is_device(f"{folder}/fd/{fd}") and not (writing and _is_reader(folder, fd))
            for fd in _nodes(folder)
        ):
            try:
                with open(f"{folder}/comm", encoding="utf-8", errors="replace") as comm:
                    found.append((pid, comm.read().strip()))
            except OSError:
                continue
    return found


def _names(folder: str) -> list[str]:
    # ESRCH: a process that ends while we look at it
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _nodes(folder: str) -> Iterator[str]:
    # most descriptors are files and sockets; stat() of one on a dead NFS server would hang
    for fd in _names(f"{folder}/fd"):
        try:
            if "/dev/" in os.readlink(f"{folder}/fd/{fd}"):
                yield fd
        except OSError:
            continue


def _is_reader(folder: str, fd: str) -> bool:
    # proc(5): /proc/PID/fdinfo/N has the flags in octal; what cannot be read may write
    try:
        with open(f"{folder}/fdinfo/{fd}", encoding="ascii") as info:
            flags = next((line.split()[1] for line in info if line.startswith("flags:")), "2")
    except OSError:
        return False
    return int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
