"""An origin on RAM disks with a snapshot of it, built by dmsetup alone: nothing of dmcopy.

    ram disk 0 = source device          ram disk 1 = COW device (through dm-delay when slow)
    origin: linear over the source before begin, snapshot-origin over it after

`Begun.witness` is the source as it was while the origin was suspended at begin time.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab import stamp

PREFIX = f"dmcp-{os.getpid()}"


def dmsetup(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["dmsetup", *words], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"dmsetup {words}: {done.stderr}"
    return done.stdout.strip()


def devno(path: str) -> str:
    rdev = os.stat(path).st_rdev
    return f"{os.major(rdev)}:{os.minor(rdev)}"


@contextmanager
def device(what: str, table: str) -> Iterator[str]:
    """Make a dm device; gives its path.  It is removed whatever happens."""
    name = f"{PREFIX}-{what}"
    dmsetup("create", name, "--uuid", f"DMCOPY-{name}", stdin=table)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        subprocess.run(["dmsetup", "resume", name], check=False, capture_output=True)
        dmsetup("remove", "--retry", name)


@contextmanager
def ram_disks(count: int, size: int) -> Iterator[list[str]]:
    """Load brd with *count* disks of *size* bytes."""
    subprocess.run(["modprobe", "-r", "brd"], check=True)
    subprocess.run(["modprobe", "brd", f"rd_nr={count}", f"rd_size={-(-size // 1024)}"], check=True)
    try:
        yield [f"/dev/ram{number}" for number in range(count)]
    finally:
        subprocess.run(["udevadm", "settle"], check=False, capture_output=True)
        subprocess.run(["modprobe", "-r", "brd"], check=True)


def read_all(path: str, length: int) -> bytes:
    """Read past the page cache."""
    memory = mmap.mmap(-1, length)
    view = memoryview(memory)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        done = 0
        while done < length:
            done += os.preadv(fd, [view[done : done + (4 << 20)]], done)
    finally:
        os.close(fd)
    return bytes(view)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A device that is written while it is copied; *length* in bytes."""

    length: int
    path: str
    source: str
    cow: str
    name: str
    chunk: int  # bytes

    @property
    def sectors(self) -> int:
        return self.length // 512

    @property
    def plain_table(self) -> str:
        return f"0 {self.sectors} linear {devno(self.source)} 0"

    @property
    def origin_table(self) -> str:
        return f"0 {self.sectors} snapshot-origin {devno(self.source)}"


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A point in time."""

    snapshot: str  # path
    snapshot_uuid: str
    witness: bytes
    t0: int  # ns
    t1: int


@contextmanager
def origin_on(
    disks: list[str], length: int, *, chunk: int, cow_length: int, cow_delay_ms: int = 0
) -> Iterator[Origin]:
    """Build the origin, not yet begun."""
    sectors = length // 512
    with ExitStack() as stack:
        source = stack.enter_context(device("source", f"0 {sectors} linear {devno(disks[0])} 0"))
        under = devno(disks[1])
        slow = (
            f"delay {under} 0 0 {under} 0 {cow_delay_ms}" if cow_delay_ms else f"linear {under} 0"
        )
        cow = stack.enter_context(device("cow", f"0 {cow_length // 512} {slow}"))
        path = stack.enter_context(device("origin", f"0 {sectors} linear {devno(source)} 0"))
        yield Origin(
            length=length, path=path, source=source, cow=cow,
            name=Path(path).name, chunk=chunk,
        )  # fmt: skip


@contextmanager
def begun(origin: Origin) -> Iterator[Begun]:
    """Fix a point in time under whatever load; taken back at the end."""
    fd = os.open(origin.cow, os.O_RDWR | os.O_DIRECT)
    os.pwritev(fd, [mmap.mmap(-1, 2 * origin.chunk)], 0)
    os.fsync(fd)
    os.close(fd)
    table = (
        f"0 {origin.sectors} snapshot {devno(origin.source)} {devno(origin.cow)} "
        f"P {origin.chunk // 512}"
    )
    with device("snap", table) as snapshot:
        dmsetup("load", origin.name, stdin=origin.origin_table)
        t0 = time.time_ns()
        dmsetup("suspend", origin.name)
        try:
            witness = read_all(origin.source, origin.length)
        finally:
            dmsetup("resume", origin.name)
        t1 = time.time_ns()
        try:
            yield Begun(
                snapshot=snapshot,
                snapshot_uuid=f"DMCOPY-{Path(snapshot).name}",
                witness=witness, t0=t0, t1=t1,
            )  # fmt: skip
        finally:
            dmsetup("load", origin.name, stdin=origin.plain_table)
            dmsetup("resume", "--noflush", origin.name)


@contextmanager
def loaded(
    origin: Origin, log: Path, *, seed: int, processes: int = 2, **more: object
) -> Iterator[None]:
    """Write to the origin until the context ends; the load must not have failed."""
    argv = [sys.executable, stamp.__file__, "load", origin.path, "--log", str(log)]
    argv += ["--seed", str(seed), "--processes", str(processes), "--seconds", "60"]
    for option, value in more.items():
        argv += [f"--{option.replace('_', '-')}", str(value)]
    process = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + 20
        while len(list(log.glob("log.*"))) < processes:
            assert process.poll() is None, "the load ended at once"
            assert time.monotonic() < deadline, "the load does not begin"
            time.sleep(0.02)
        yield
        assert process.poll() is None, "the load ended before the copy"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert process.returncode == 0
