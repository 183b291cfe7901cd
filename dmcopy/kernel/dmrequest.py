"""One request to device-mapper: its layout, and two ways to ask it again and again.

`Prepared` is a call made ready before a hold, so that nothing but the ioctl happens while
I/O is held; `Probe` is what the worker asks the kernel after each segment.  Neither logs,
forks or touches a file.  Not for single calls: that is `dmioctl`.

Kernel: include/uapi/linux/dm-ioctl.h (names and layout are its own), drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

from dmcopy.errors import DmBusy, DmFailed, DmMissing

CONTROL: Final = "/dev/mapper/control"

DM_NAME_LEN: Final = 128
DM_UUID_LEN: Final = 129
DM_MAX_TYPE_NAME: Final = 16

DM_READONLY_FLAG: Final = 1 << 0
DM_SUSPEND_FLAG: Final = 1 << 1
DM_STATUS_TABLE_FLAG: Final = 1 << 4
DM_ACTIVE_PRESENT_FLAG: Final = 1 << 5
DM_INACTIVE_PRESENT_FLAG: Final = 1 << 6
DM_BUFFER_FULL_FLAG: Final = 1 << 8
DM_SKIP_LOCKFS_FLAG: Final = 1 << 10
DM_NOFLUSH_FLAG: Final = 1 << 11
DM_QUERY_INACTIVE_TABLE_FLAG: Final = 1 << 12
DM_UEVENT_GENERATED_FLAG: Final = 1 << 13
DM_DATA_OUT_FLAG: Final = 1 << 16
DM_DEFERRED_REMOVE: Final = 1 << 17


class dm_ioctl(ctypes.Structure):
    """The head of every request and answer (struct dm_ioctl)."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 3),  # in: what we were written for; out: the driver's
        ("data_size", ctypes.c_uint32),  # bytes, this head included
        ("data_start", ctypes.c_uint32),  # bytes from the start of this head
        ("target_count", ctypes.c_uint32),
        ("open_count", ctypes.c_int32),
        ("flags", ctypes.c_uint32),  # DM_*_FLAG, in and out
        ("event_nr", ctypes.c_uint32),  # in: udev flags and cookie; out: event number
        ("padding", ctypes.c_uint32),
        ("dev", ctypes.c_uint64),  # huge_encode_dev(); the same as makedev(3)
        ("name", ctypes.c_char * DM_NAME_LEN),
        ("uuid", ctypes.c_char * DM_UUID_LEN),
        ("data", ctypes.c_char * 7),
    )


HEAD: Final = ctypes.sizeof(dm_ioctl)
# struct dm_target_spec: start and length (sectors), status, next (bytes), target_type
SPEC: Final = struct.Struct("=QQiI16s")
_INTERFACE: Final = (4, 0, 0)  # the oldest that has all we use but uevents and messages

Ioctl = Callable[[int, int, bytearray, bool], int]


def _iowr(number: int) -> int:
    """Give _IOWR(DM_IOCTL, *number*, struct dm_ioctl)."""
    return (3 << 30) | (HEAD << 16) | (0xFD << 8) | number


DM_VERSION: Final = _iowr(0)
DM_LIST_DEVICES: Final = _iowr(2)
DM_DEV_CREATE: Final = _iowr(3)
DM_DEV_REMOVE: Final = _iowr(4)
DM_DEV_RENAME: Final = _iowr(5)
DM_DEV_SUSPEND: Final = _iowr(6)
DM_DEV_STATUS: Final = _iowr(7)
DM_TABLE_LOAD: Final = _iowr(9)
DM_TABLE_CLEAR: Final = _iowr(10)
DM_TABLE_DEPS: Final = _iowr(11)
DM_TABLE_STATUS: Final = _iowr(12)
DM_LIST_VERSIONS: Final = _iowr(13)
DM_TARGET_MSG: Final = _iowr(14)
DM_DEV_ARM_POLL: Final = _iowr(16)


def failure(verb: str, name: str, number: int) -> DmFailed:
    """Give the error for errno *number*."""
    kind = {errno.ENXIO: DmMissing, errno.EBUSY: DmBusy}.get(number, DmFailed)
    return kind(verb, name, os.strerror(number), errno=number)


def head_of(*, name: str = "", uuid: str = "", devno: str = "", flags: int = 0) -> dm_ioctl:
    """Give a request for one device; the kernel takes just one of name, uuid and devno."""
    head = dm_ioctl(version=_INTERFACE, data_size=HEAD, data_start=HEAD, flags=flags)
    head.name = name.encode()
    head.uuid = uuid.encode()
    if devno:
        major, _, minor = devno.partition(":")
        head.dev = os.makedev(int(major), int(minor))
    return head


def devno_of(dev: int) -> str:
    return f"{os.major(dev)}:{os.minor(dev)}"


def string(data: bytearray, start: int) -> bytes:
    """Give the bytes from *start* up to the terminating zero."""
    return bytes(data[start : data.index(0, start)])


def specs(data: bytearray) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Give start, length, kind and text of each target in an answer to DM_TABLE_STATUS."""
    head = dm_ioctl.from_buffer_copy(data)
    at = head.data_start
    for _ in range(head.target_count):
        start, length, _status, following, kind = SPEC.unpack_from(data, at)
        # The kernel writes the name and zeroes, but not the last byte of the field
        # (dm-ioctl.c:retrieve_status): there lies what an earlier answer left in this buffer.
        yield start, length, kind.partition(b"\0")[0], string(data, at + SPEC.size)
        at = head.data_start + following  # from the first one: see the header


def lines(data: bytearray) -> bytes:
    """Give the targets in an answer as `dmsetup` prints them, without blanks at line ends."""
    return b"\n".join(
        b"%d %d %s %s" % spec if spec[3] else b"%d %d %s" % spec[:3] for spec in specs(data)
    )


class Prepared:
    """One request for one device, built beforehand; calling it is one ioctl.

    Nothing is allocated, logged or opened by the call; what it needs is its own.  The
    answer stays in it until the next call.  Raises `DmFailed` and its kin.
    """

    def __init__(self, call: Ioctl, fd: int, request: int, verb: str, head: dm_ioctl) -> None:
        self._call = call
        self._fd = fd
        self._request = request
        self._verb = verb
        self._name = head.name.decode()
        # the kernel answers in place, so the question is kept to be asked again
        self._question = bytes(head)
        self._buffer = bytearray(self._question)
        self._answer = dm_ioctl.from_buffer(self._buffer)

    def set_udev_flags(self, flags: int) -> None:
        """Have the uevent of the call carry *flags* (cookie.DM_UDEV_*, shifted) to udev."""
        head = dm_ioctl.from_buffer_copy(self._question)
        head.event_nr = flags
        self._question = bytes(head)

    def __call__(self) -> None:
        """Ask the kernel."""
        ctypes.memmove(ctypes.addressof(self._answer), self._question, HEAD)
        try:
            self._call(self._fd, self._request, self._buffer, True)
        except OSError as exc:
            raise failure(self._verb, self._name, exc.errno or errno.EIO) from exc

    @property
    def suspended(self) -> bool:
        """Tell whether the device was suspended when the call returned."""
        return bool(self._answer.flags & DM_SUSPEND_FLAG)

    @property
    def inactive(self) -> bool:
        """Tell whether a table lay in the inactive slot when the call returned."""
        return bool(self._answer.flags & DM_INACTIVE_PRESENT_FLAG)

    @property
    def event_nr(self) -> int:
        """Give the device's event number as of the call."""
        return int(self._answer.event_nr)


class Probe:
    """Status and table of one device, found by uuid or devno, asked again and again.

    Neither ever waits for I/O (DM_NOFLUSH_FLAG).  *fd* is an open /dev/mapper/control and
    stays the caller's.  Raises `DmMissing` when the device is gone.  One thread at a time.
    """

    def __init__(
        self, fd: int, *, uuid: str = "", devno: str = "", call: Ioctl = fcntl.ioctl
    ) -> None:
        if bool(uuid) == bool(devno):
            raise ValueError("a probe looks for a uuid or for a devno")
        self._fd = fd
        self._call = call
        self._what = uuid or devno
        head = head_of(uuid=uuid, devno=devno, flags=DM_NOFLUSH_FLAG)
        self._status = bytes(head)
        head.flags |= DM_STATUS_TABLE_FLAG
        self._table = bytes(head)
        self._buffer = bytearray(4096)

    def status(self) -> bytes:
        """Give the lines that `dmsetup status` prints, without blanks at line ends."""
        return self._ask("read the status of", self._status)

    def table(self) -> bytes:
        """Give the lines that `dmsetup table` prints, without blanks at line ends."""
        return self._ask("read the table of", self._table)

    def _ask(self, verb: str, question: bytes) -> bytes:
        while True:
            self._buffer[:HEAD] = question
            struct.pack_into("=I", self._buffer, dm_ioctl.data_size.offset, len(self._buffer))
            try:
                self._call(self._fd, DM_TABLE_STATUS, self._buffer, True)
            except OSError as exc:
                raise failure(verb, self._what, exc.errno or errno.EIO) from exc
            (flags,) = struct.unpack_from("=I", self._buffer, dm_ioctl.flags.offset)
            if not flags & DM_BUFFER_FULL_FLAG:
                return lines(self._buffer)
            self._buffer = bytearray(len(self._buffer) * 2)
