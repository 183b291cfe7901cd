"""device-mapper by ioctl on /dev/mapper/control: the backend that production uses.

Not for deciding anything, nor for waiting for udev (`cookie` does).  A resume of a foreign
device, and any call that does not change which devices there are, logs nothing, forks nothing
and touches no file: it may be made while I/O is held.

Kernel: include/uapi/linux/dm-ioctl.h (names and layout are its own), drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import select
import stat
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

from dmcopy.core.table import Table
from dmcopy.errors import DmBusy, DmFailed, DmMissing
from dmcopy.kernel.cookie import UDEV_FLAGS, VISIBLE_FLAGS, Cookie, Cookies, udev_runs
from dmcopy.kernel.dm import OURS, WRAPS, DmInfo, DmStatus
from dmcopy.kernel.dmrequest import (
    CONTROL,
    DM_ACTIVE_PRESENT_FLAG,
    DM_BUFFER_FULL_FLAG,
    DM_DATA_OUT_FLAG,
    DM_DEFERRED_REMOVE,
    DM_DEV_ARM_POLL,
    DM_DEV_CREATE,
    DM_DEV_REMOVE,
    DM_DEV_RENAME,
    DM_DEV_STATUS,
    DM_DEV_SUSPEND,
    DM_INACTIVE_PRESENT_FLAG,
    DM_LIST_DEVICES,
    DM_LIST_VERSIONS,
    DM_NAME_LEN,
    DM_NOFLUSH_FLAG,
    DM_QUERY_INACTIVE_TABLE_FLAG,
    DM_READONLY_FLAG,
    DM_SKIP_LOCKFS_FLAG,
    DM_STATUS_TABLE_FLAG,
    DM_SUSPEND_FLAG,
    DM_TABLE_CLEAR,
    DM_TABLE_DEPS,
    DM_TABLE_LOAD,
    DM_TABLE_STATUS,
    DM_TARGET_MSG,
    DM_UEVENT_GENERATED_FLAG,
    DM_UUID_LEN,
    DM_VERSION,
    HEAD,
    SPEC,
    Ioctl,
    Prepared,
    Probe,
    devno_of,
    dm_ioctl,
    failure,
    head_of,
    lines,
    specs,
    string,
)
from dmcopy.kernel.patience import again

__all__ = [
    "CONTROL",
    "DM_DEV_CREATE",
    "DM_DEV_REMOVE",
    "DM_DEV_SUSPEND",
    "DM_TABLE_CLEAR",
    "DM_TABLE_LOAD",
    "DmIoctl",
    "Ioctl",
    "Prepared",
    "Probe",
    "check_name",
]

log = logging.getLogger(__name__)

DM_DIR: Final = "/dev/mapper"

_NAME_LIST: Final = struct.Struct("=QI")  # struct dm_name_list: dev, next (bytes); name follows
_VERSIONS: Final = struct.Struct("=I3I")  # struct dm_target_versions: next, version; name follows
_DEPS: Final = struct.Struct("=II")  # struct dm_target_deps: count, padding; dev[] follows
_MESSAGE: Final = struct.Struct("=Q")  # struct dm_target_msg: sector; text follows

_FIRST_SIZE: Final = 16 << 10
_LARGEST_SIZE: Final = 256 << 20
# What a name may hold: libdm's own list (lib/libdm-common.c:_is_whitelisted_char); anything
# else it writes to the kernel as \xNN, so that a backslash is met in foreign names.
_NEW_NAME: Final = re.compile(r"[A-Za-z0-9#+\-.:=@_]+")
_OLD_NAME: Final = re.compile(r"[A-Za-z0-9#+\-.:=@_\\]+")


def check_name(verb: str, name: str, *, new: bool = False) -> str:
    """Give *name* back; raises `DmFailed` when it cannot be (for *new*: must not be) a dm name."""
    allowed = _NEW_NAME if new else _OLD_NAME
    if name in (".", "..", "control") or len(name) >= DM_NAME_LEN or not allowed.fullmatch(name):
        raise DmFailed(verb, repr(name), "not a dm name", errno=errno.EINVAL)
    return name


class DmIoctl:
    """`Dm` by ioctl.  Any number of threads may use one.

    The control node is opened at the first call.  *cookies* makes create, resume, remove and
    rename of our devices wait for udev where it runs; without it nobody waits.
    A remove that meets EBUSY is tried again for *retry* seconds.
    """

    def __init__(
        self,
        control: str = CONTROL,
        *,
        cookies: Cookies | None = None,
        retry: float = 3.0,
        call: Ioctl = fcntl.ioctl,
    ) -> None:
        self._control = control
        self._cookies = cookies
        self._retry = retry
        self._call = call
        self._fd: int | None = None
        self._opening = threading.Lock()
        self._size = _FIRST_SIZE

    def fileno(self) -> int:
        """Give the open control node, for a `Probe`; it stays ours."""
        with self._opening:
            if self._fd is None:
                try:
                    self._fd = os.open(self._control, os.O_RDWR | os.O_CLOEXEC)
                except OSError as exc:
                    raise DmFailed(
                        "use", self._control, f"{os.strerror(exc.errno or 0)} (is dm-mod loaded?)",
                        errno=exc.errno,
                    ) from exc  # fmt: skip
            return self._fd

    def close(self) -> None:
        """Close the control node; prepared calls and probes on it end with it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # asking

    def version(self) -> tuple[int, int, int]:
        """Give the version of the driver's ioctl interface."""
        head = dm_ioctl.from_buffer(self._run("version", DM_VERSION, head_of()))
        return (head.version[0], head.version[1], head.version[2])

    def targets(self) -> dict[str, tuple[int, int, int]]:
        """Give the target kinds that the kernel has loaded, with their versions."""
        data = self._run("list targets of", DM_LIST_VERSIONS, head_of())
        at = dm_ioctl.from_buffer(data).data_start
        found: dict[str, tuple[int, int, int]] = {}
        while True:
            following, *version = _VERSIONS.unpack_from(data, at)
            found[string(data, at + _VERSIONS.size).decode()] = (
                version[0], version[1], version[2],
            )  # fmt: skip
            if not following:
                return found
            at += following

    def devices(self) -> list[DmInfo]:
        """List all devices; one that goes away meanwhile is left out."""
        data = self._run("list", DM_LIST_DEVICES, head_of())
        at = dm_ioctl.from_buffer(data).data_start
        found: list[DmInfo] = []
        while True:
            dev, following = _NAME_LIST.unpack_from(data, at)
            if dev and (info := self._ask_info(head_of(devno=devno_of(dev)))) is not None:
                found.append(info)
            if not following:
                return found
            at += following

    def info(self, name: str) -> DmInfo | None:
        """Give what the kernel knows of *name*, None when there is no such device."""
        return self._ask_info(head_of(name=check_name("look at", name)))

    def find(self, uuid: str) -> DmInfo | None:
        """Give the device with this exact *uuid*, None when there is none."""
        return self._ask_info(head_of(uuid=uuid)) if uuid else None

    def _ask_info(self, head: dm_ioctl) -> DmInfo | None:
        try:
            return _info(dm_ioctl.from_buffer(self._run("look at", DM_DEV_STATUS, head)))
        except DmMissing:
            return None

    def table(self, name: str, *, inactive: bool = False) -> Table:
        """Give the live (or the *inactive*) table; empty when there is none."""
        flags = DM_STATUS_TABLE_FLAG | DM_NOFLUSH_FLAG
        flags |= DM_QUERY_INACTIVE_TABLE_FLAG if inactive else 0
        head = head_of(name=check_name("read the table of", name), flags=flags)
        return Table.parse(lines(self._run("read the table of", DM_TABLE_STATUS, head)).decode())

    def status(self, name: str, *, flush: bool = True) -> list[DmStatus]:
        """Ask the targets of the live table; *flush* False never waits for I/O."""
        head = head_of(name=check_name("read the status of", name))
        return self._ask_status(head, flush=flush)

    def status_of(self, uuid: str, *, flush: bool = False) -> list[DmStatus]:
        """Do what `status` does for the device with this *uuid*."""
        return self._ask_status(head_of(uuid=uuid), flush=flush)

    def _ask_status(self, head: dm_ioctl, *, flush: bool) -> list[DmStatus]:
        head.flags |= 0 if flush else DM_NOFLUSH_FLAG
        data = self._run("read the status of", DM_TABLE_STATUS, head)
        return [
            DmStatus(start, length, kind.decode(), text.decode().rstrip())
            for start, length, kind, text in specs(data)
        ]

    def deps(self, name: str) -> list[str]:
        """List the devices ("major:minor") that the live table uses."""
        head = head_of(name=check_name("read the dependencies of", name))
        data = self._run("read the dependencies of", DM_TABLE_DEPS, head)
        answer = dm_ioctl.from_buffer(data)
        if not answer.flags & DM_ACTIVE_PRESENT_FLAG:
            return []
        count, _ = _DEPS.unpack_from(data, answer.data_start)
        devs = struct.unpack_from(f"={count}Q", data, answer.data_start + _DEPS.size)
        return [devno_of(dev) for dev in devs]

    def message(self, name: str, sector: int, text: str) -> str:
        """Send *text* to the target at *sector*; give its answer, often empty."""
        head = head_of(name=check_name("send a message to", name))
        payload = _MESSAGE.pack(sector) + text.encode() + b"\0"
        data = self._run("send a message to", DM_TARGET_MSG, head, payload)
        answer = dm_ioctl.from_buffer(data)
        if not answer.flags & DM_DATA_OUT_FLAG:
            return ""
        return string(data, answer.data_start).decode().rstrip("\n")

    def wait(self, name: str, event_nr: int, *, timeout: float) -> int | None:
        """Wait until the device's event number differs from *event_nr*.

        Gives the new number, or None when *timeout* seconds went by.
        """
        end = time.monotonic() + timeout
        # its own open file: the kernel keeps what was seen per file (dm-ioctl.c:dm_poll)
        fd = os.open(self._control, os.O_RDWR | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            while True:
                # armed before it is looked at: an event in between wakes the poll at once
                self._call(fd, DM_DEV_ARM_POLL, bytearray(bytes(head_of())), True)
                info = self.info(name)
                if info is None:
                    raise failure("wait for", name, errno.ENXIO)
                if info.event_nr != event_nr:
                    return info.event_nr
                left = end - time.monotonic()
                if left <= 0:
                    return None
                poll.poll(left * 1000)
        finally:
            os.close(fd)

    # changing

    def create(
        self, name: str, uuid: str, table: Table | None = None, *, read_only: bool = False
    ) -> DmInfo:
        """Create a device; with a *table* also load it and resume (live on return).

        When it raises, there is no such device (a half made one is removed).
        """
        head = head_of(name=check_name("create", name, new=True), uuid=uuid)
        if len(uuid) >= DM_UUID_LEN:
            raise DmFailed("create", name, "the uuid is too long", errno=errno.EINVAL)
        head.flags = DM_READONLY_FLAG if read_only else 0
        made = _info(dm_ioctl.from_buffer(self._run("create", DM_DEV_CREATE, head)))
        try:
            if table is not None:
                self.load(name, table, read_only=read_only)
                self.resume(name)
            self._make_node(name, made.devno)
        except BaseException:
            with suppress(DmMissing):
                self.remove(name)
            raise
        log.info("created dm device %s (%s)", name, made.devno)
        return self.info(name) or made

    def load(self, name: str, table: Table, *, read_only: bool = False) -> None:
        """Load *table* into the inactive slot; the live table goes on."""
        head = head_of(name=check_name("load a table into", name))
        head.flags = DM_READONLY_FLAG if read_only else 0
        head.target_count = len(table.rows)
        payload = bytearray()
        for row in table.rows:
            text = row.target.params.encode() + b"\0"
            step = -(-(SPEC.size + len(text)) // 8) * 8  # the next one is aligned to 8 bytes
            kind = row.target.kind.encode()
            payload += SPEC.pack(row.start, row.target.length, 0, step, kind)
            payload += text.ljust(step - SPEC.size, b"\0")
        try:
            self._run("load a table into", DM_TABLE_LOAD, head, bytes(payload))
        except DmMissing as exc:
            if self.info(name) is None:
                raise
            # it is a device in the table that is missing
            raise DmFailed(exc.verb, name, exc.why, errno=exc.errno) from exc

    def clear(self, name: str) -> None:
        """Drop the table in the inactive slot; nothing happens when there is none."""
        self._run("clear", DM_TABLE_CLEAR, head_of(name=check_name("clear", name)))

    def suspend(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        """Hold all I/O; `resume` must follow."""
        self.prepare_suspend(name, lockfs=lockfs, flush=flush)()

    def resume(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        """Swap a loaded table in (suspending by itself if need be) and let I/O go on.

        One ioctl: no user code runs while I/O is held.  *lockfs* freezes a file system
        that is mounted directly on the device, *flush* False lets targets requeue.
        """
        head = head_of(name=check_name("resume", name), flags=_hold_flags(lockfs, flush))
        self._run_synced("resume", DM_DEV_SUSPEND, head)

    def remove(self, name: str, *, deferred: bool = False) -> None:
        """Remove the device; `DmBusy` while it is open, unless *deferred*."""
        check_name("remove", name)

        def remove() -> None:
            head = head_of(name=name, flags=DM_DEFERRED_REMOVE if deferred else 0)
            self._run_synced("remove", DM_DEV_REMOVE, head)

        again(remove, on=DmBusy, seconds=self._retry)
        self._drop_node(name)
        log.info("removed dm device %s", name)

    def rename(self, name: str, new: str) -> None:
        """Give the device a new name; its uuid stays."""
        head = head_of(name=check_name("rename", name))
        payload = check_name("rename", new, new=True).encode() + b"\0"
        self._run_synced("rename", DM_DEV_RENAME, head, payload)
        self._drop_node(name)
        if (info := self.info(new)) is not None:
            self._make_node(new, info.devno)
        log.info("renamed dm device %s to %s", name, new)

    # made ready for a hold

    def prepare_suspend(self, name: str, *, lockfs: bool = True, flush: bool = True) -> Prepared:
        """Make a suspend ready."""
        flags = DM_SUSPEND_FLAG | _hold_flags(lockfs, flush)
        return self._prepare("suspend", DM_DEV_SUSPEND, name, flags)

    def prepare_resume(self, name: str, *, lockfs: bool = True, flush: bool = True) -> Prepared:
        """Make a resume ready; it waits for no udev, whoever owns the device.

        Raises `DmMissing` now when there is no such device.
        """
        info = self.info(name)
        if info is None:
            raise failure("resume", name, errno.ENXIO)
        prepared = self._prepare("resume", DM_DEV_SUSPEND, name, _hold_flags(lockfs, flush))
        prepared.set_udev_flags(UDEV_FLAGS if info.uuid.startswith(OURS) else 0)
        return prepared

    def prepare_exchange(
        self, name: str, over: Table, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], bool]:
        """Make an exchange ready, by three ioctls (`kernel.dm.Dm`)."""
        hold = self.prepare_suspend(name, lockfs=lockfs, flush=flush)
        release = self.prepare_resume(name, lockfs=lockfs, flush=flush)
        drop = self.prepare_clear(name)
        info = self.info(name)
        if info is None:
            raise failure("resume", name, errno.ENXIO)
        probe = self.probe(devno=info.devno)
        said = probe.table()
        is_so = Table.parse(said.decode()) == over

        def exchange() -> bool:
            try:
                hold()
            except DmFailed:  # the wait for I/O under way was cut short: nothing is held
                drop()
                raise
            try:
                same = is_so and probe.table() == said
            except DmFailed:
                same = False
            if not same:
                drop()
            release()
            return same

        return exchange

    def prepare_clear(self, name: str) -> Prepared:
        """Make a `clear` ready."""
        return self._prepare("clear", DM_TABLE_CLEAR, name, 0)

    def prepare_info(self, name: str) -> Prepared:
        """Make a look at the device ready: see `Prepared.suspended` after the call."""
        return self._prepare("look at", DM_DEV_STATUS, name, 0)

    def probe(self, *, uuid: str = "", devno: str = "") -> Probe:
        """Make a `Probe` on our control node."""
        return Probe(self.fileno(), uuid=uuid, devno=devno, call=self._call)

    def _prepare(self, verb: str, request: int, name: str, flags: int) -> Prepared:
        head = head_of(name=check_name(verb, name), flags=flags)
        return Prepared(self._call, self.fileno(), request, verb, head)

    # the ioctl itself

    def _run(self, verb: str, request: int, head: dm_ioctl, payload: bytes = b"") -> bytearray:
        """Ask, with a larger buffer while the answer does not fit; give the answer."""
        size = max(self._size, HEAD + len(payload))
        subject = head.name.decode() or head.uuid.decode() or "control"
        while True:
            head.data_size = size
            data = bytearray(size)
            data[:HEAD] = bytes(head)
            data[HEAD : HEAD + len(payload)] = payload
            try:
                self._call(self.fileno(), request, data, True)
            except OSError as exc:
                raise failure(verb, subject, exc.errno or errno.EIO) from exc
            if not dm_ioctl.from_buffer_copy(data).flags & DM_BUFFER_FULL_FLAG:
                return data
            if size >= _LARGEST_SIZE:
                raise failure(verb, subject, errno.ENOBUFS)
            size *= 4
            self._size = min(size, 1 << 20)

    def _run_synced(self, verb: str, request: int, head: dm_ioctl, payload: bytes = b"") -> None:
        """Ask for a change that makes a uevent; wait for udev when the device is ours."""
        info = self._ask_info(head_of(name=head.name.decode()))
        if info is None or not info.uuid.startswith((OURS, WRAPS)):
            self._run(verb, request, head, payload)
            return
        head.event_nr = UDEV_FLAGS if info.uuid.startswith(OURS) else VISIBLE_FLAGS
        with ExitStack() as stack:
            cookie = self._cookie(stack)
            head.event_nr |= cookie.value if cookie else 0
            answer = dm_ioctl.from_buffer(self._run(verb, request, head, payload))
            if cookie and answer.flags & DM_UEVENT_GENERATED_FLAG:
                cookie.wait()

    def _cookie(self, stack: ExitStack) -> Cookie | None:
        """Give a cookie where udev runs; the change is made without one if there is none."""
        if self._cookies is None or not udev_runs():
            return None
        try:
            return stack.enter_context(self._cookies.cookie())
        except OSError as exc:  # no semaphores left, no room in /run
            log.warning("not waiting for udev: %s", exc)
            return None

    # what udev does where it runs

    def _make_node(self, name: str, devno: str) -> None:
        """Make /dev/mapper/*name* where udev does not; a nicety, so failing is no failure."""
        if udev_runs():
            return
        major, _, minor = devno.partition(":")
        self._drop_node(name)
        try:
            os.mknod(
                f"{DM_DIR}/{name}", stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor))
            )  # fmt: skip
        except OSError as exc:
            log.debug("no node for dm device %s: %s", name, exc)

    def _drop_node(self, name: str) -> None:
        """Take /dev/mapper/*name* away where udev does not."""
        if not udev_runs():
            with suppress(OSError):
                os.unlink(f"{DM_DIR}/{name}")


def _hold_flags(lockfs: bool, flush: bool) -> int:
    return (0 if lockfs else DM_SKIP_LOCKFS_FLAG) | (0 if flush else DM_NOFLUSH_FLAG)


def _info(head: dm_ioctl) -> DmInfo:
    return DmInfo(
        name=head.name.decode(),
        uuid=head.uuid.decode(),
        devno=devno_of(head.dev),
        open_count=head.open_count,
        event_nr=head.event_nr,
        target_count=head.target_count,
        live=bool(head.flags & DM_ACTIVE_PRESENT_FLAG),
        inactive=bool(head.flags & DM_INACTIVE_PRESENT_FLAG),
        suspended=bool(head.flags & DM_SUSPEND_FLAG),
        read_only=bool(head.flags & DM_READONLY_FLAG),
    )
