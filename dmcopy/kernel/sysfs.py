"""What the kernel says of block devices in /sys and /proc: reads only, starts no program.

Devices are named by devno, "major:minor": a path may be one of many, and may be gone.
Every method raises OSError (ENOENT) for a device that is not there.  The roots and stat()
can be replaced, for tests with a tree of their own.

Documents: Documentation/ABI/stable/sysfs-block, proc(5) for mountinfo and swaps.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.kernel.blkdev import devno as devno_text
from dmcopy.kernel.diskstat import IoTimes
from dmcopy.kernel.openers import openers
from dmcopy.units import Bytes, Sectors, to_bytes

_MOUNT_OPTIONS: Final = 2  # columns of mountinfo behind the "-": type, source, options
_DELETED: Final = " (deleted)"
_LOOK_SECONDS: Final = 0.05


class Mount(NamedTuple):
    """One line of mountinfo."""

    devno: str  # of the superblock; "0:n" where the file system has several or no devices
    point: str
    fstype: str
    source: str
    options: tuple[str, ...]  # of the superblock


class Queue(NamedTuple):
    """The limits of a device's queue; 0 where the device has no such wish or ability."""

    logical_block: Bytes
    physical_block: Bytes
    minimum_io: Bytes
    optimal_io: Bytes
    write_zeroes_max: Bytes
    discard_max: Bytes


class Sysfs:
    """The block devices of this host."""

    def __init__(
        self,
        root: str = "/sys",
        proc: str = "/proc",
        dev: str = "/dev",
        *,
        stat: Callable[[str], os.stat_result] = os.stat,
    ) -> None:
        """Read below these roots; *stat* follows links."""
        self.root = Path(root)
        self.proc = Path(proc)
        self.dev = Path(dev)
        self._stat = stat

    def boot_id(self) -> str:
        """Give what is different after each boot (random(4))."""
        return _must_text(self.proc / "sys/kernel/random/boot_id")

    # names

    def devno_of(self, path: str) -> str:
        """Give the number of the block device that *path* leads to; ENOTBLK for another file."""
        found = self._stat(path)
        if not stat.S_ISBLK(found.st_mode):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), path)
        return devno_text(found.st_rdev)

    def node(self, devno: str) -> str:
        """Give a path below /dev that opens the device, its kernel name first; makes none."""
        for path in self._likely_nodes(devno):
            if self._rdev(path) == devno:
                return path
        raise FileNotFoundError(errno.ENOENT, "no device node", devno)

    def _likely_nodes(self, devno: str) -> Iterator[str]:
        # without udev there are only the nodes of devtmpfs and those that libdm makes
        yield str(self.dev / self.kname(devno).replace("!", "/"))
        yield str(self.dev / "block" / devno)
        for folder in (self.dev / "mapper", self.dev):
            yield from (str(entry) for entry in _entries(folder))

    def kname(self, devno: str) -> str:
        """Give the kernel's name: ``sda1``, ``dm-3``, ``cciss!c0d0``."""
        return self.folder(devno).name

    def folder(self, devno: str) -> Path:
        """Give the device's own directory in sysfs."""
        link = self.root / "dev" / "block" / devno
        # one level and no more: every other part of the path is a directory
        return Path(os.path.normpath(link.parent / os.readlink(link)))

    def dm_name(self, devno: str) -> str:
        """Give the dm name, "" when it is no dm device."""
        return _text(self.folder(devno) / "dm" / "name")

    def dm_uuid(self, devno: str) -> str:
        """Give the dm uuid, "" when it is no dm device or has none."""
        return _text(self.folder(devno) / "dm" / "uuid")

    # facts

    def size(self, devno: str) -> Bytes:
        """Give the device's size."""
        return to_bytes(Sectors(int(_must_text(self.folder(devno) / "size"))))

    def start(self, devno: str) -> Sectors:
        """Give where a partition begins on its disk; 0 for a disk."""
        return Sectors(int(_text(self.folder(devno) / "start") or "0"))

    def is_read_only(self, devno: str) -> bool:
        """Tell whether the kernel refuses writes to the device."""
        return _text(self.folder(devno) / "ro") == "1"

    def queue(self, devno: str) -> Queue:
        """Give the limits of the device's queue; a partition has its disk's."""
        folder = self._disk(self.folder(devno)) / "queue"

        def limit(name: str) -> Bytes:
            return Bytes(int(_text(folder / name) or "0"))

        return Queue(
            logical_block=limit("logical_block_size"),
            physical_block=limit("physical_block_size"),
            minimum_io=limit("minimum_io_size"),
            optimal_io=limit("optimal_io_size"),
            write_zeroes_max=limit("write_zeroes_max_bytes"),
            discard_max=limit("discard_max_bytes"),
        )

    def writes(self, devno: str) -> int:
        """Count the writes and discards that the device has completed since it appeared."""
        times = self.io_times(devno)
        return times.writes + times.discards

    def io_times(self, devno: str) -> IoTimes:
        """Give how much the device has written, and how long its writes took together."""
        return IoTimes.parse(_must_text(self.folder(devno) / "stat"))

    def writes_under_way(self, devno: str) -> int:
        """Count the writes that the device has begun and not completed."""
        return int(_must_text(self.folder(devno) / "inflight").split()[1])

    def identity(self, devno: str) -> dict[str, str | int]:
        """Give what tells this device from others; only what sysfs knows, no empty values.

        ``devno``, ``kname`` and ``size_bytes`` are always there; ``wwn``, ``serial``,
        ``dm_uuid``, ``dm_name``, ``md_uuid``, ``partuuid``, ``partition`` and
        ``backing_file`` where the device has them.  A partition has its disk's wwn and serial.
        """
        folder = self.folder(devno)
        disk = self._disk(folder)
        found: dict[str, str] = {
            "kname": folder.name,
            "wwn": _first(disk / "wwid", disk / "device" / "wwid"),
            "serial": _first(disk / "serial", disk / "device" / "serial") or _vpd_serial(disk),
            "dm_uuid": _text(folder / "dm" / "uuid"),
            "dm_name": _text(folder / "dm" / "name"),
            "md_uuid": _text(folder / "md" / "uuid"),
            "partuuid": _uevent(folder).get("PARTUUID", ""),
            "partition": _text(folder / "partition"),
            "backing_file": self.loop_backing_file(devno),
        }
        known: dict[str, str | int] = {"devno": devno, "size_bytes": self.size(devno)}
        return known | {key: value for key, value in found.items() if value}

    # what lies on what

    def slaves(self, devno: str) -> frozenset[str]:
        """Give the devices that a dm, md or bcache device is made of."""
        return self._linked(self.folder(devno) / "slaves")

    def holders(self, devno: str) -> frozenset[str]:
        """Give the dm, md and bcache devices that are made of this one."""
        return self._linked(self.folder(devno) / "holders")

    def partitions(self, devno: str) -> frozenset[str]:
        """Give the partitions of a disk."""
        folder = self.folder(devno)
        # named after their disk (block/partitions/core.c:add_partition)
        inner = _entries(folder, folder.name)
        return frozenset(_text(one / "dev") for one in inner if (one / "partition").is_file())

    def parent(self, devno: str) -> str | None:
        """Give the disk that a partition is part of, None for a disk."""
        folder = self.folder(devno)
        disk = self._disk(folder)
        return None if disk == folder else _must_text(disk / "dev")

    def loop_backing_file(self, devno: str) -> str:
        """Give the path that a loop device was made from, "" when it is none or not set up.

        The kernel gives the path as it is today, with " (deleted)" behind it when so.
        """
        return _text(self.folder(devno) / "loop" / "backing_file")

    def loops(self) -> dict[str, str]:
        """Give all loop devices that are set up: devno -> path of the backing file."""
        files = (
            (folder, _text(folder / "loop" / "backing_file"))
            for folder in _entries(self.root / "block", "loop")
        )
        found = {_text(folder / "dev"): path for folder, path in files if path}
        return {devno: path for devno, path in found.items() if devno}

    def below(self, devno: str) -> frozenset[str]:
        """Give all devices that hold this one's data, to the bottom; not the device itself.

        Through slaves, from a partition to its disk, and from a loop device to the devices
        of the file system that holds its file (or to the device, when it was made from one).
        """
        return self._closure(devno, self._directly_below)

    def above(self, devno: str) -> frozenset[str]:
        """Give all devices whose data lies on this one, to the top; not the device itself."""
        loops = {loop: self.devices_of(path) for loop, path in self.loops().items()}

        def directly(one: str) -> frozenset[str]:
            over = frozenset(loop for loop, under in loops.items() if one in under)
            return self.holders(one) | self.partitions(one) | over

        return self._closure(devno, directly)

    def _directly_below(self, devno: str) -> frozenset[str]:
        found = set(self.slaves(devno))
        disk = self.parent(devno)
        if disk is not None:
            found.add(disk)
        backing = self.loop_backing_file(devno)
        if backing:
            found |= self.devices_of(backing)
        return frozenset(found)

    def _closure(self, devno: str, step: Callable[[str], frozenset[str]]) -> frozenset[str]:
        self.folder(devno)  # ENOENT for the first; one that goes away later is left out
        found: set[str] = set()
        waiting = [devno]
        while waiting:
            one = waiting.pop()
            with contextlib.suppress(FileNotFoundError):
                new = step(one) - found - {devno}
                found |= new
                waiting += new
        return frozenset(found)

    # files and mounts

    def devices_of(self, path: str) -> frozenset[str]:
        """Give the devices that hold the file or directory *path*; of a block device, itself.

        Empty where no device is known (tmpfs, network file systems, a path that is gone).
        A deleted file, as the kernel writes it for a loop device, is where its directory is.
        """
        try:
            found = self._stat(path)
        except OSError:
            alive = path.removesuffix(_DELETED)
            return self.devices_of(os.path.dirname(alive)) if alive != path else frozenset()
        if stat.S_ISBLK(found.st_mode):
            return frozenset({devno_text(found.st_rdev)})
        if os.major(found.st_dev) != 0:
            return frozenset({devno_text(found.st_dev)})
        # An anonymous number: btrfs gives every subvolume its own, which is not even the one
        # in mountinfo, so only the path tells (fs/btrfs/inode.c:btrfs_getattr).
        mount = self._mount_at(os.path.realpath(path))
        return self._devices_of_mount(mount) if mount is not None else frozenset()

    def _mount_at(self, path: str) -> Mount | None:
        def holds(point: str) -> bool:
            return path == point or path.startswith(point.rstrip("/") + "/")

        # of several at one point, the last one hides the others
        over = [mount for mount in self.mounts() if holds(mount.point)]
        return max(reversed(over), key=lambda mount: len(mount.point), default=None)

    def _devices_of_mount(self, mount: Mount) -> frozenset[str]:
        if not mount.devno.startswith("0:"):
            return frozenset({mount.devno})
        if mount.fstype == "overlay":
            folders = [o.partition("=")[2] for o in mount.options if o.startswith("upperdir=")]
            return frozenset().union(*(self.devices_of(folder) for folder in folders))
        # bcachefs joins its devices by ":"; btrfs names one of them
        # others have a word there, "tmpfs" or "none"
        sources = (source for source in mount.source.split(":") if source.startswith("/"))
        found = {self._rdev(source) for source in sources}
        named = frozenset(devno for devno in found if devno)
        return named.union(*(self._btrfs_family(devno) for devno in named))

    def _btrfs_family(self, devno: str) -> frozenset[str]:
        for family in _entries(self.root / "fs" / "btrfs"):
            members = self._linked(family / "devices")
            if devno in members:
                return members
        return frozenset()

    def mounts(self) -> list[Mount]:
        """Read all mounts of our mount namespace, in the kernel's order."""
        lines = (self.proc / "self" / "mountinfo").read_text(errors="surrogateescape")
        return [_mount(line) for line in lines.splitlines()]

    def mounts_of(self, devno: str) -> list[str]:
        """Give the mount points of the file systems on this very device.

        Found by the superblock's device and by that of the mount's source, so by whatever
        name it was mounted; every device of a btrfs counts.
        """
        points = [m.point for m in self.mounts() if devno in self._devices_of_mount(m)]
        return list(dict.fromkeys(points))

    def is_swap(self, devno: str) -> bool:
        """Tell whether the device is in use as swap space."""
        lines = _text(self.proc / "swaps").splitlines()[1:]
        return any(self._rdev(_unescape(line.split()[0])) == devno for line in lines)

    def openers(
        self, devno: str, *, writing: bool = False, lasting: float = 0.0
    ) -> list[tuple[int, str]]:
        """Give the other processes that have the device open: (pid, command name).

        With *writing*, only those that may write; with *lasting*, only those that still have
        it that many seconds later: udev, and what its rules start, look into a device for a
        moment whenever a writer has closed it.  As far as we may look: only root sees all.
        """

        def look() -> list[tuple[int, str]]:
            return openers(str(self.proc), lambda fd: self._rdev(fd) == devno, writing=writing)

        found = look()
        end = time.monotonic() + lasting
        while found and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            still = look()
            found = [who for who in found if who in still]
        return found

    # small parts

    def _rdev(self, path: str) -> str:
        with contextlib.suppress(OSError, ValueError):
            found = self._stat(path)
            if stat.S_ISBLK(found.st_mode):
                return devno_text(found.st_rdev)
        return ""

    def _disk(self, folder: Path) -> Path:
        return folder.parent if (folder / "partition").is_file() else folder

    def _linked(self, folder: Path) -> frozenset[str]:
        # the hidden paths of an NVMe multipath device have no dev
        found = (_text(entry / "dev") for entry in _entries(folder))
        return frozenset(devno for devno in found if devno)


def _entries(folder: Path, prefix: str = "") -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if name.startswith(prefix)]


def _text(path: Path) -> str:
    try:
        return _must_text(path)
    except OSError:
        return ""


def _must_text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError as exc:
        if exc.errno != errno.ENODEV:
            raise
        # it went between open and read (fs/kernfs/file.c:kernfs_fop_read_iter)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from exc


def _first(*paths: Path) -> str:
    return next((text for text in map(_text, paths) if text), "")


def _vpd_serial(disk: Path) -> str:
    # SCSI page 0x80: 4 bytes of header, the last two are the length of the text
    try:
        page = (disk / "device" / "vpd_pg80").read_bytes()
    except OSError:
        return ""
    length = int.from_bytes(page[2:4], "big")
    return page[4 : 4 + length].decode("ascii", "replace").strip(" \0")


def _uevent(folder: Path) -> dict[str, str]:
    lines: Iterable[str] = _text(folder / "uevent").splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def _mount(line: str) -> Mount:
    before, _, behind = line.partition(" - ")
    words, tail = before.split(), behind.split(" ")
    options = tail[_MOUNT_OPTIONS] if len(tail) > _MOUNT_OPTIONS else ""
    return Mount(words[2], _unescape(words[4]), tail[0], _unescape(tail[1]), _options(options))


def _options(text: str) -> tuple[str, ...]:
    return tuple(_unescape(option) for option in text.split(","))


def _unescape(text: str) -> str:
    # proc(5): space, tab, newline and backslash stand as \ooo
    if "\\" not in text:
        return text
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
