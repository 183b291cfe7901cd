"""Devices for one test, made by the system's own tools and taken down afterwards.

Disks are loop devices over files in memory.  What was not there before a test must not be there
after it: conftest looks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

# the code that running jobs keep: once for all tests of a guest, and not for each its own
CODE = "/run/lab/code"
_PATIENCE = 10.0  # seconds; udev may hold a device for a moment


def sh(*argv: str, stdin: str | None = None) -> str:
    """Run a program, give its stdout; raise with what it said."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def patiently(*argv: str) -> None:
    """Run a program again while the device is busy."""
    end = time.monotonic() + _PATIENCE
    while True:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        assert time.monotonic() < end, f"{argv}: {done.stdout}{done.stderr}"
        time.sleep(0.1)


class Stage:
    """Makes devices; `close` takes them down, last first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._undo = ExitStack()
        self.folder = tempfile.mkdtemp(prefix=f"{name}-", dir="/run")
        self._undo.callback(shutil.rmtree, self.folder)
        self._count = 0

    def later(self, undo: Callable[..., object], *args: object) -> None:
        self._undo.callback(undo, *args)

    def close(self) -> None:
        self._undo.close()

    def _new(self, what: str) -> str:
        self._count += 1
        return f"{self.name}-{what}{self._count}"

    def file(self, mib: int, folder: str | None = None) -> str:
        path = os.path.join(folder or self.folder, self._new("file"))
        with open(path, "wb") as new:
            new.truncate(mib << 20)
        return path

    def disk(self, mib: int = 16, *, sector: int = 512, file: str | None = None) -> str:
        file = file or self.file(mib)
        node = sh("losetup", "--find", "--show", "--sector-size", str(sector), file)
        self.later(patiently, "losetup", "--detach", node)
        return node

    def dm(self, table: str) -> str:
        name = self._new("dm")
        sh("dmsetup", "create", name, "--table", table)
        self.later(patiently, "dmsetup", "remove", name)
        return f"/dev/mapper/{name}"

    def linear(self, device: str, sectors: int | None = None) -> str:
        length = sectors or int(sh("blockdev", "--getsz", device))
        return self.dm(f"0 {length} linear {device} 0")

    def filesystem(self, device: str, kind: str = "ext4") -> str:
        sh(f"mkfs.{kind}", "-q", device)
        return self.mount(device)

    def mount(self, device: str) -> str:
        point = os.path.join(self.folder, self._new("mnt"))
        os.mkdir(point)
        sh("mount", device, point)
        self.later(patiently, "umount", point)
        return point

    def md(
        self,
        *members: str,
        level: int = 1,
        metadata: str = "1.0",
        spares: Sequence[str] = (),
        options: Sequence[str] = ("--assume-clean",),
    ) -> str:
        """Make an array; without ``--assume-clean`` it is resynced."""
        number = self._count = self._count + 1
        node = f"/dev/md{100 + number}"
        sh(
            "mdadm", "--create", "--run", "--quiet", node, f"--level={level}",
            f"--metadata={metadata}", "--force", f"--raid-devices={len(members)}",
            *([f"--spare-devices={len(spares)}"] if spares else []), *options, *members, *spares,
        )  # fmt: skip
        self.later(patiently, "mdadm", "--stop", "--quiet", node)
        return node

    def partition(self, disk: str) -> str:
        """Give a disk one partition of 8 MiB at 1 MiB, by the kernel's own call."""
        _write_dos_table(disk)
        sh("partx", "--add", "--nr", "1", disk)
        self.later(patiently, "partx", "--delete", "--nr", "1", disk)
        return f"{disk}p1"


def _write_dos_table(disk: str, entries: Sequence[tuple[int, int]] = ((2048, 16384),)) -> None:
    table = bytearray(512)
    for number, (start, length) in enumerate(entries):
        at = 446 + 16 * number
        table[at + 4] = 0x83
        table[at + 8 : at + 12] = start.to_bytes(4, "little")
        table[at + 12 : at + 16] = length.to_bytes(4, "little")
    table[440:444] = b"dmcp"
    table[510:512] = b"\x55\xaa"
    with open(disk, "r+b") as device:
        device.write(table)
        device.flush()
        os.fsync(device.fileno())
