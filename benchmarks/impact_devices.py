"""The devices of the benchmark of the impact: five equal RAM disks, and a slow destination.

    bench-data (dm linear, what the application writes to)   ram0   dmcopy, and without a copy
    bench-slow (dm delay over it: the destination of all)    ram1
    COW device                                               ram2   dmcopy
    benchvg/origin (what the application writes to)          ram3   LVM
    benchvg/snap   (COW device)                              ram4   LVM

All pages are written before anything is timed.  A write to the destination is delayed by a
fixed time, flushes and reads are not: a copy is slow because its destination is, whoever makes
it.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.devices import CHUNK, DATA, MIB, SECTOR, Devices, call, create, fill, remove

SPARE: Final = 16 * MIB  # beyond the source: a COW device's header and table, LVM's metadata
_DISKS: Final = tuple(f"/dev/ram{number}" for number in range(5))
_SOURCE, _SLOW, _COW, _PV, _COW_PV = _DISKS
_DELAYED: Final = "bench-slow"
_LOOK: Final = 0.005  # seconds

VG: Final = "benchvg"
ORIGIN: Final = f"/dev/{VG}/origin"
SNAPSHOT: Final = f"/dev/{VG}/snap"

_CONFIG: Final = (
    f'devices {{ use_devicesfile=0 filter=["a|^{_PV}$|","a|^{_COW_PV}$|","r|.*|"] }} '
    "backup { backup=0 archive=0 } activation { monitoring=0 }"
)


def lvm(program: str, *argv: str) -> str:
    """Run one of LVM's programs on our two physical volumes only."""
    return call(program, "--config", _CONFIG, "--yes", "--quiet", *argv)


@dataclass
class Watched:
    """What was seen of the origin, in time.time()."""

    held: list[tuple[float, float]] = field(default_factory=list)  # from when until when
    changed: float | None = None  # when it was first seen with another device beneath


@contextmanager
def watched() -> Iterator[Watched]:
    """Look at the origin every 5 ms meanwhile; what is shorter than that may not be seen."""
    device = os.stat(ORIGIN).st_rdev
    sysfs = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    found, end, beneath = Watched(), threading.Event(), os.listdir(sysfs / "slaves")

    def watch() -> None:
        since: float | None = None
        while not end.wait(_LOOK):
            now, held = time.time(), (sysfs / "dm/suspended").read_text().strip() == "1"
            if found.changed is None and os.listdir(sysfs / "slaves") != beneath:
                found.changed = now
            if held and since is None:
                since = now
            elif not held and since is not None:
                found.held.append((since, now))
                since = None

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()


def take_snapshot() -> None:
    """Make LVM's snapshot; its COW device can hold every chunk."""
    lvm("lvcreate", "-s", "-c", f"{CHUNK >> 10}k", "-n", "snap", "-l", "100%FREE",
        f"{VG}/origin", _COW_PV)  # fmt: skip


def chunks_used() -> int:
    """Read how many chunks LVM's snapshot keeps: ``0 N snapshot used/total metadata``."""
    words = call("dmsetup", "status", f"{VG}-snap").split()
    used, metadata = int(words[3].split("/")[0]), int(words[4])
    return (used - metadata) // (CHUNK // SECTOR)


def drop_snapshot() -> None:
    """Remove it."""
    lvm("lvremove", "--force", f"{VG}/snap")


def _have(size: int) -> bool:
    sizes = [Path("/sys/class/block", Path(disk).name, "size") for disk in _DISKS]
    return all(one.exists() and int(one.read_text()) * SECTOR >= size for one in sizes)


@contextmanager
def _disks(size: int) -> Iterator[None]:
    """See to it that there are RAM disks; those that are there already stay."""
    ours = not _have(size)
    if ours:
        with suppress(subprocess.CalledProcessError):
            call("modprobe", "-r", "brd")
        call("modprobe", "brd", f"rd_nr={len(_DISKS)}", f"rd_size={size >> 10}")
    try:
        if not _have(size):
            raise RuntimeError(f"RAM disks of other sizes are in use: need 5 of {size} bytes")
        yield
    finally:
        if ours:
            subprocess.run(["modprobe", "-r", "brd"], check=False)


@contextmanager
def _volume_group(size: int) -> Iterator[None]:
    lvm("vgcreate", "--physicalextentsize", "1m", VG, _PV, _COW_PV)
    try:
        lvm("lvcreate", "-L", f"{size}b", "-n", "origin", "-Wn", "-Zn", VG, _PV)
        try:
            fill(ORIGIN, size, salt=1)
            yield
        finally:
            if Path(SNAPSHOT).exists():
                drop_snapshot()
            lvm("lvremove", "--force", f"{VG}/origin")
    finally:
        lvm("vgremove", "--force", VG)
        for disk in (_PV, _COW_PV):
            lvm("pvremove", disk)


@contextmanager
def devices(size: int, delay_ms: int) -> Iterator[Devices]:
    """Make and fill the devices; all are gone afterwards."""
    with _disks(size + SPARE):
        call("modprobe", "-a", "dm-mod", "dm-snapshot", "dm-delay")
        subprocess.run(["udevadm", "settle"], check=False)
        fill(_SOURCE, size, salt=1)
        fill(_SLOW, size, salt=2)
        for disk in (_COW, _COW_PV):
            fill(disk, size + SPARE, salt=3)
        made = Devices(size, _SOURCE, f"/dev/mapper/{_DELAYED}", _COW)
        with _volume_group(size):
            try:
                create(DATA, made.linear)
                create(
                    _DELAYED,
                    f"0 {made.sectors} delay {_SLOW} 0 0 {_SLOW} 0 {delay_ms} {_SLOW} 0 0",
                )
                yield made
            finally:
                remove(DATA, _DELAYED)
