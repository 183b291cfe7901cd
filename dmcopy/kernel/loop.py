"""Loop devices by ioctl: starts no program, so the worker may use it.

Kernel: include/uapi/linux/loop.h, drivers/block/loop.c.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

from dmcopy.kernel.blkdev import devno as devno_text
from dmcopy.kernel.sysfs import Sysfs

# include/uapi/linux/loop.h
LOOP_SET_FD: Final = 0x4C00
LOOP_CLR_FD: Final = 0x4C01
LOOP_SET_STATUS64: Final = 0x4C04
LOOP_SET_CAPACITY: Final = 0x4C07
LOOP_SET_DIRECT_IO: Final = 0x4C08
LOOP_CONFIGURE: Final = 0x4C0A
LOOP_CTL_GET_FREE: Final = 0x4C82
LO_FLAGS_READ_ONLY: Final = 1
LO_FLAGS_AUTOCLEAR: Final = 4
LO_FLAGS_DIRECT_IO: Final = 16
LO_NAME_SIZE: Final = 64

_BLOCK_SIZE: Final = 512
_TRIES: Final = 64
_OLD_KERNEL: Final = (errno.EINVAL, errno.ENOTTY)  # LOOP_CONFIGURE is there since v5.8

_INFO64: Final = struct.Struct(
    "=3Q"  # lo_device, lo_inode, lo_rdevice   __u64  kernel fills in
    "2Q"  # lo_offset, lo_sizelimit            __u64  bytes; 0 is all
    "4I"  # lo_number, lo_encrypt_type, lo_encrypt_key_size, lo_flags   __u32
    "64s"  # lo_file_name                      __u8   for show
    "64s32s"  # lo_crypt_name, lo_encrypt_key  __u8
    "2Q"  # lo_init                            __u64
)
_CONFIG: Final = struct.Struct(
    "=2I"  # fd, block_size                    __u32
    f"{_INFO64.size}s"  # info                 struct loop_info64
    "64x"  # __reserved                        __u64[8]
)


class Loop(NamedTuple):
    """A loop device that is set up."""

    devno: str
    backing_file: str


class LoopDevice:
    """A loop device that we set up; owns *fd*, an open descriptor of it.

    With autoclear the kernel takes it down at the last close: ours, or that of whoever
    opened it meanwhile.  So it goes away with a killed process, unless dm or md uses it.
    """

    def __init__(self, fd: int, path: str, *, autoclear: bool) -> None:
        """Take over *fd*; `attach` is the way in."""
        self.fd = fd
        self.path = path
        self.devno = devno_text(os.fstat(fd).st_rdev)
        self._autoclear = autoclear

    @classmethod
    def attach(
        cls,
        path: str,
        *,
        direct: bool = True,
        autoclear: bool = True,
        read_only: bool = False,
        dev: str = "/dev",
        before: Callable[[int], None] | None = None,
    ) -> Self:
        """Set up a free loop device over the file *path*, with 512-byte blocks.

        *before* is given the descriptor while the device is still empty, and udev has nothing
        to look at; when another process takes the device first, it is called again.

        *direct* asks for direct I/O to the file, where its file system can
        (``loop/dio`` in sysfs tells).  Raises OSError.
        """
        access = os.O_RDONLY if read_only else os.O_RDWR
        flags = LO_FLAGS_DIRECT_IO if direct and _takes_direct_io(path) else 0
        flags |= LO_FLAGS_AUTOCLEAR if autoclear else 0
        flags |= LO_FLAGS_READ_ONLY if read_only else 0
        info = _info(path, flags)
        backing = os.open(path, access | os.O_CLOEXEC)
        try:
            for _ in range(_TRIES):
                node = os.path.join(dev, f"loop{_free_number(dev)}")
                fd = os.open(node, access | os.O_CLOEXEC)
                try:
                    if before is not None:
                        before(fd)
                    _configure(fd, backing, info)
                    return cls(fd, node, autoclear=autoclear)
                except OSError as error:
                    os.close(fd)
                    # another took the same free one; the next round gets another number
                    if error.errno != errno.EBUSY:
                        raise
        finally:
            os.close(backing)
        raise OSError(errno.EBUSY, "every free loop device was taken by others", path)

    def __enter__(self) -> Self:
        """Give the device itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the device down."""
        self.detach()

    def detach(self) -> None:
        """Take the device down, at once or when its last user closes it; harmless twice."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            if not self._autoclear:
                fcntl.ioctl(fd, LOOP_CLR_FD, 0)
        except OSError as error:
            if error.errno != errno.ENXIO:  # somebody else was quicker
                raise
        finally:
            os.close(fd)

    def leave(self) -> None:
        """Close our descriptor only: without autoclear the device stays."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def clear(path: str) -> None:
    """Take down the loop device *path* that another process set up; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, LOOP_CLR_FD, 0)
    finally:
        os.close(fd)


def set_capacity(path: str) -> None:
    """Make the loop device *path* as large as its file is now; raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, LOOP_SET_CAPACITY, 0)
    finally:
        os.close(fd)


def list_loops(sysfs: Sysfs) -> list[Loop]:
    """List the loop devices that are set up."""
    return [Loop(devno, path) for devno, path in sorted(sysfs.loops().items())]


def _free_number(dev: str) -> int:
    control = os.open(os.path.join(dev, "loop-control"), os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, LOOP_CTL_GET_FREE, 0)
    finally:
        os.close(control)


def _info(path: str, flags: int) -> bytes:
    name = os.fsencode(os.path.abspath(path))[: LO_NAME_SIZE - 1]
    return _INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)


def _takes_direct_io(path: str) -> bool:
    """Tell whether the file can really be read with O_DIRECT.

    The kernel asks only whether the file system has the method, and overlayfs always does
    (drivers/block/loop.c:__loop_update_dio, fs/overlayfs/file.c): over tmpfs every write
    to the loop device would then fail with EIO.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(fd, [page], 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _configure(fd: int, backing: int, info: bytes) -> None:
    try:
        fcntl.ioctl(fd, LOOP_CONFIGURE, _CONFIG.pack(backing, _BLOCK_SIZE, info))
    except OSError as error:
        if error.errno not in _OLD_KERNEL:
            raise
        _configure_in_steps(fd, backing, info)


def _configure_in_steps(fd: int, backing: int, info: bytes) -> None:
    fcntl.ioctl(fd, LOOP_SET_FD, backing)
    try:
        fcntl.ioctl(fd, LOOP_SET_STATUS64, info)
    except OSError:
        fcntl.ioctl(fd, LOOP_CLR_FD, 0)
        raise
    wants_direct = _INFO64.unpack(info)[8] & LO_FLAGS_DIRECT_IO
    if wants_direct:
        with contextlib.suppress(OSError):  # EINVAL: the file system cannot; as LOOP_CONFIGURE
            fcntl.ioctl(fd, LOOP_SET_DIRECT_IO, 1)
