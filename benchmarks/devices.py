"""The devices of a benchmark: three equal RAM disks, and the application's volume on one.

    data (dm linear, what the application has open) -> ram0
    destination                                        ram1
    COW device                                         ram2

Every page of source and destination is written once before anything is timed, with data that
is not zero, so that no run pays for allocation and none gains by holes.
"""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
SECTOR: Final = 512

DATA: Final = "bench-data"
_SOURCE: Final = "bench-source"
_SNAPSHOT: Final = "bench-snap"
_TINY_IN: Final = "bench-tiny-in"
_TINY_OUT: Final = "bench-tiny-out"
_TINY: Final = 4 * MIB
CHUNK: Final = 64 << 10


def call(*argv: str) -> str:
    """Run a program, give its stdout; raises CalledProcessError with its stderr."""
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
    return done.stdout


def create(name: str, table: str) -> str:
    """Make a dm device, give its path."""
    call("dmsetup", "create", name, "--table", table)
    return f"/dev/mapper/{name}"


def swap(name: str, table: str) -> None:
    """Give a live dm device another table."""
    call("dmsetup", "load", name, "--table", table)
    call("dmsetup", "resume", name)


def remove(*names: str) -> None:
    """Remove dm devices that are there; udev may have one open for a moment."""
    for name in names:
        if Path(f"/dev/mapper/{name}").exists():
            call("dmsetup", "remove", "--retry", name)


@dataclass(frozen=True)
class Devices:
    """Paths, and the size in bytes of all of them."""

    size: int
    base: str
    destination: str
    cow: str

    @property
    def sectors(self) -> int:
        """The size in sectors, as a dm table has it."""
        return self.size // SECTOR

    @property
    def data(self) -> str:
        """What the application has open."""
        return f"/dev/mapper/{DATA}"

    @property
    def linear(self) -> str:
        """The table of the application's volume when nothing is copied."""
        return f"0 {self.sectors} linear {self.base} 0"

    def settle(self) -> None:
        """Bring everything to the same state before each run."""
        with open(self.cow, "r+b", buffering=0) as file:
            file.write(bytes(MIB))  # no signature of the last snapshot
            os.fsync(file.fileno())
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")  # what buffered peers left
        subprocess.run(["udevadm", "settle"], check=False)

    @contextmanager
    def snapshot(self) -> Iterator[str]:
        """Give the kernel's snapshot device of this instant, as an administrator makes one."""
        source = create(_SOURCE, self.linear)
        try:
            table = f"0 {self.sectors} snapshot {source} {self.cow} P {CHUNK // SECTOR}"
            path = create(_SNAPSHOT, table)
            swap(DATA, f"0 {self.sectors} snapshot-origin {source}")
            yield path
        finally:
            swap(DATA, self.linear)
            remove(_SNAPSHOT, _SOURCE)

    @contextmanager
    def tiny(self) -> Iterator[tuple[str, str]]:
        """Give a source and a destination of 4 MiB: what a peer needs for those is start-up."""
        try:
            yield (
                create(_TINY_IN, f"0 {_TINY // SECTOR} linear {self.base} 0"),
                create(_TINY_OUT, f"0 {_TINY // SECTOR} linear {self.destination} 0"),
            )
        finally:
            remove(_TINY_IN, _TINY_OUT)

    def same(self) -> bool:
        """Compare the destination with the source, past the page cache."""
        one, two = mmap.mmap(-1, 4 * MIB), mmap.mmap(-1, 4 * MIB)
        files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in (self.base, self.destination)]
        try:
            for offset in range(0, self.size, 4 * MIB):
                for file, into in zip(files, (one, two), strict=True):
                    os.preadv(file, [into], offset)
                if one[:] != two[:]:
                    return False
            return True
        finally:
            for file in files:
                os.close(file)


def fill(path: str, size: int, *, salt: int) -> None:
    """Write data without a zero block, that differs in each 64 KiB and by *salt*."""
    memory = mmap.mmap(-1, 8 * MIB)
    memory.write(os.urandom(8 * MIB))
    file = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        for offset in range(0, size, 8 * MIB):
            for block in range(0, 8 * MIB, 64 << 10):
                memory[block : block + 16] = (offset + block).to_bytes(8) + salt.to_bytes(8)
            os.pwritev(file, [memoryview(memory)[: min(8 * MIB, size - offset)]], offset)
    finally:
        os.close(file)


@contextmanager
def ram_disks(size: int) -> Iterator[Devices]:
    """Make and fill the devices; all are gone afterwards."""
    with suppress(subprocess.CalledProcessError):
        call("modprobe", "-r", "brd")
    call("modprobe", "brd", "rd_nr=3", f"rd_size={size >> 10}")
    try:
        call("modprobe", "-a", "dm-mod", "dm-snapshot", "dm-mirror")
        subprocess.run(["udevadm", "settle"], check=False)
        devices = Devices(size, "/dev/ram0", "/dev/ram1", "/dev/ram2")
        fill(devices.base, size, salt=1)
        fill(devices.destination, size, salt=2)
        # what the snapshots will need of the COW device; more is allocated as it is written
        fill(devices.cow, min(size, 256 * MIB), salt=3)
        create(DATA, devices.linear)
        try:
            yield devices
        finally:
            remove(DATA)
    finally:
        subprocess.run(["modprobe", "-r", "brd"], check=False)
