"""One open block device; reads and writes that are never short; system calls os has not.

Nothing here starts a program: the worker, which must not fork, uses it.  Nothing here
decides whether a device may be written; `dmcopy.destinations.block` does.

Kernel: include/uapi/linux/fs.h (BLK*), block/ioctl.c, block/fops.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from dmcopy.errors import Refused
from dmcopy.kernel.patience import again
from dmcopy.units import Bytes, Sectors, sectors_down

# include/uapi/linux/fs.h
BLKROGET: Final = 0x125E  # int
BLKSSZGET: Final = 0x1268  # int, bytes
BLKDISCARD: Final = 0x1277  # u64[2], start and length in bytes
BLKZEROOUT: Final = 0x127F  # u64[2], start and length in bytes
BLKGETSIZE64: Final = 0x80081272  # u64, bytes

# include/uapi/linux/falloc.h, fcntl.h, fs.h
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
AT_FDCWD: Final = -100
RENAME_NOREPLACE: Final = 1

_INT: Final = struct.Struct("=i")
_U64: Final = struct.Struct("=Q")
_RANGE: Final = struct.Struct("=2Q")


def devno(rdev: int) -> str:
    """Write a device number as "major:minor", the kernel's way."""
    return f"{os.major(rdev)}:{os.minor(rdev)}"


@contextmanager
def locked(path: str, patience: float = 5.0) -> Iterator[None]:
    """Hold the lock (flock(2)) that whoever changes what a device is takes, as mkfs does.

    Raises `Refused` when another has it for *patience* seconds, and OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            again(
                lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
                on=BlockingIOError,
                seconds=patience,
            )
        except BlockingIOError as exc:
            raise Refused(
                f"{path} is locked by another program, which may be changing it",
                way_out=f"wait for it; see: lsof {path}",
            ) from exc
        yield
    finally:
        os.close(fd)


def pread_full(fd: int, into: memoryview, offset: int) -> None:
    """Fill all of *into* from *offset*; raises OSError, EIO when the device ends before.

    With O_DIRECT, *into*, its length and *offset* are multiples of the logical block.
    """
    done = 0
    while done < len(into):
        got = os.preadv(fd, [into[done:]], offset + done)
        if got == 0:
            raise OSError(errno.EIO, f"end of device at {offset + done}")
        done += got


def pwrite_full(fd: int, data: memoryview, offset: int) -> None:
    """Write all of *data* at *offset*; alignment as in `pread_full`; raises OSError."""
    done = 0
    while done < len(data):
        put = os.pwritev(fd, [data[done:]], offset + done)
        if put == 0:
            raise OSError(errno.EIO, f"nothing written at {offset + done}")
        done += put


def syncfs(path: str) -> None:
    """Write out the file system that holds *path*: syncfs(2); raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syncfs.argtypes = [ctypes.c_int]
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _raise_unless_zero(libc.syncfs(fd))
    finally:
        os.close(fd)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make a range of a file a hole, which reads as zeroes: fallocate(2); size stays.

    Raises OSError, EOPNOTSUPP where the file system has no holes.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    _raise_unless_zero(libc.fallocate64(fd, mode, offset, length))


def rename_new(old: str, new: str) -> None:
    """Rename within a file system and never replace: EEXIST when *new* is there.

    renameat2(2); where the file system does not know RENAME_NOREPLACE, *new* is looked for
    first, which leaves a moment between the two.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # int olddirfd, const char *oldpath, int newdirfd, const char *newpath, unsigned flags
    path = ctypes.c_char_p
    libc.renameat2.argtypes = [ctypes.c_int, path, ctypes.c_int, path, ctypes.c_uint]
    words = (AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new))
    try:
        _raise_unless_zero(libc.renameat2(*words, RENAME_NOREPLACE), new)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from error
        os.rename(old, new)


class BlockDevice:
    """An open block device; owns *fd* and closes it with `close` or as a context manager."""

    def __init__(self, fd: int, path: str) -> None:
        """Take over *fd*; `open` is the way in."""
        self.fd = fd
        self.path = path
        self.devno = devno(os.fstat(fd).st_rdev)

    @classmethod
    def open(
        cls, path: str, *, write: bool = False, exclusive: bool = False, direct: bool = True
    ) -> Self:
        """Open *path*, which must be there; raises OSError, ENOTBLK for anything else.

        *exclusive* is the kernel's claim (O_EXCL): EBUSY while the device is mounted, swap,
        a member of a dm or md device, or claimed by another.
        """
        # before the open, because opening a fifo would wait and a tape would rewind
        _must_be_block(os.stat(path), path)
        flags = os.O_RDWR if write else os.O_RDONLY
        flags |= os.O_CLOEXEC
        flags |= os.O_EXCL if exclusive else 0
        flags |= os.O_DIRECT if direct else 0
        fd = os.open(path, flags)
        try:
            _must_be_block(os.fstat(fd), path)  # the path may name something else by now
            return cls(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> Self:
        """Give the device itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the device."""
        self.close()

    def close(self) -> None:
        """Close *fd*, and with it give up the claim; harmless a second time."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    @property
    def size(self) -> Bytes:
        """The size now; a device may grow while it is open."""
        (size,) = _U64.unpack(fcntl.ioctl(self.fd, BLKGETSIZE64, bytes(_U64.size)))
        return Bytes(size)

    @property
    def sectors(self) -> Sectors:
        """The size in whole sectors."""
        return sectors_down(self.size)

    @property
    def logical_block(self) -> Bytes:
        """The unit in which the device is addressed, and the alignment that O_DIRECT needs."""
        (size,) = _INT.unpack(fcntl.ioctl(self.fd, BLKSSZGET, bytes(_INT.size)))
        return Bytes(size)

    @property
    def read_only(self) -> bool:
        """Whether the kernel refuses writes to the device."""
        (flag,) = _INT.unpack(fcntl.ioctl(self.fd, BLKROGET, bytes(_INT.size)))
        return bool(flag)

    def zero(self, offset: Bytes, length: Bytes) -> None:
        """Make the range read as zeroes; by WRITE ZEROES where the device can.

        The kernel itself falls back to writing (block/blk-lib.c:blkdev_issue_zeroout), and
        drops the range from the page cache.  Multiples of the logical block.
        """
        fcntl.ioctl(self.fd, BLKZEROOUT, _RANGE.pack(offset, length))

    def discard(self, offset: Bytes, length: Bytes) -> None:
        """Tell the device that the range is not needed; what it then reads as is not said."""
        fcntl.ioctl(self.fd, BLKDISCARD, _RANGE.pack(offset, length))

    def flush(self) -> None:
        """Make all that was written durable: page cache out, then the device's own cache."""
        os.fsync(self.fd)


def _raise_unless_zero(result: int, path: str | None = None) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def _must_be_block(found: os.stat_result, path: str) -> None:
    if not stat.S_ISBLK(found.st_mode):
        raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), path)
