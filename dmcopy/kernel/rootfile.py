"""A small file in the root of a file system that nobody has mounted: read, and never written to.

For disks of strangers.  Whoever made the file system may be hostile, and what is on it stays as it
is, byte for byte.  So the kind is fixed by the caller, never tried out, and there are two ways:

* ext2, ext3, ext4: by debugfs (e2fsprogs), which opens the device read-only, and mounts nothing.
  The kernel writes to one that is mounted with ``ro,noload`` all the same: it takes away orphaned
  inodes (fs/ext4/orphan.c:ext4_orphan_cleanup) and puts on record what is damaged
  (super.c:ext4_handle_error); and the superblock may ask for a panic at the first error.
* vfat: by the kernel, which writes nothing to one that is mounted read-only (fs/fat/inode.c:
  fat_set_state returns).  In a mount namespace of its own, which ends with the program.

The programs have a time limit: a device that hangs does not keep the caller.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dmcopy.errors import CommandFailed, DmcopyError
from dmcopy.kernel.command import Commander, Completed
from dmcopy.units import Bytes

_EXT: Final = ("ext2", "ext3", "ext4")
_FAT: Final = "vfat"
KINDS: Final = (*_EXT, _FAT)

_SECONDS: Final = 20.0
_STAT: Final = 1 << 14  # bytes of what debugfs says of a file; the first lines are read
_NO_MOUNT: Final = 61
_NO_FILE: Final = 62
_STATUSES: Final = (0, 1, _NO_MOUNT, _NO_FILE)  # 1: dd's, of a directory
# device, mount point, name, bytes.  "nofollow" and "nonblock": a link, a pipe in place of a file.
_FROM_FAT: Final = f"""\
cd / || exit
mount --no-mtab --internal-only --types vfat --options ro,nosuid,nodev,noexec \
--source "$1" --target "$2" || exit {_NO_MOUNT}
cd "$2" && stat --format="%F, %s" -- "$3" || exit {_NO_FILE}
exec dd if="$3" iflag=nofollow,nonblock,fullblock bs="$4" count=1 status=none
"""
_FROM_EXT: Final = 'debugfs -R "$2" -- "$1" | head --bytes="$3"'  # device, request, bytes
_BANNER: Final = re.compile(r"debugfs \d")
_TYPE: Final = re.compile(r"^Inode: .* Type: (\S+) ", re.MULTILINE)
_SIZE: Final = re.compile(r"^User: .* Size: (\d+)$", re.MULTILINE)


def read(run: Commander, node: str, kind: str, name: str, *, most: Bytes, point: Path) -> str:
    """Give the text of the file *name* on the device *node*, whose file system is *kind*.

    *most*: what a longer one has is a fault.  *point*: a directory of ours, made when it is
    missing, for one at a time.  Raises `DmcopyError` with what is wrong, in a line; OSError.
    """
    try:
        if kind in _EXT:
            return _from_ext(run, node, name, most)
        assert kind == _FAT
        with _alone(point):
            return _from_fat(run, node, name, most, point)
    except CommandFailed as exc:
        if exc.status is None:
            raise DmcopyError(f"{node} does not answer within {_SECONDS:.0f} s") from exc
        raise DmcopyError(f"cannot look into {node}: {exc}") from exc


def _from_ext(run: Commander, node: str, name: str, most: Bytes) -> str:
    def ask(request: str, size: int) -> Completed:
        argv = ("sh", "-c", _FROM_EXT, "sh", node, request, str(size))
        return run.run(*argv, timeout=_SECONDS, changes=False)

    said = ask(f"stat /{name}", _STAT)
    kind, size = _TYPE.search(said.stdout), _SIZE.search(said.stdout)
    if kind is None or size is None:
        lines = (line for line in said.stderr.splitlines() if not _BANNER.match(line))
        why = next(lines, "debugfs says nothing").strip()
        if "File not found" in why:
            raise DmcopyError(f"{node} has no file {name}")
        raise DmcopyError(f"cannot look into {node}: {why}")
    _must_be_small(node, name, most, is_file=kind[1] == "regular", size=int(size[1]))
    return ask(f"cat /{name}", most).stdout


def _from_fat(run: Commander, node: str, name: str, most: Bytes, point: Path) -> str:
    # "slave": what is unmounted elsewhere meanwhile is not kept by this copy of all mounts
    argv = ("unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", _FROM_FAT,
            "sh", node, str(point), name, str(most))  # fmt: skip
    said = run.run(*argv, ok=_STATUSES, timeout=_SECONDS, changes=False)
    if said.status == _NO_MOUNT:
        why = (said.stderr.splitlines() or ["mount says nothing"])[0]
        raise DmcopyError(
            f"cannot mount {node}: {why.removeprefix('mount: ').removeprefix(f'{point}: ')}"
        )
    if said.status == _NO_FILE:
        raise DmcopyError(f"{node} has no file {name}")
    first, _, text = said.stdout.partition("\n")
    kind, _, size = first.rpartition(", ")
    _must_be_small(node, name, most, is_file=kind.startswith("regular "), size=int(size))
    if said.status != 0:
        raise DmcopyError(f"cannot read {name} on {node}: {said.stderr.strip()}")
    return text


def _must_be_small(node: str, name: str, most: Bytes, *, is_file: bool, size: int) -> None:
    if not is_file:
        raise DmcopyError(f"{name} on {node} is no regular file")
    if size > most:
        raise DmcopyError(f"{name} on {node} is larger than {most} bytes")


@contextmanager
def _alone(point: Path) -> Iterator[None]:
    """Have *point*; others wait: a device is mounted once at a time, and let go with its mount."""
    point.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
