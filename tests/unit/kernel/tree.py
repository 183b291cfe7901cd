"""A small /sys, /proc and /dev in a directory, shaped like the kernel's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from dmcopy.kernel.sysfs import Sysfs


class Tree:
    """Devices are made bottom up; a path outside of /dev is given its device by `put_file`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.sys, self.proc, self.dev = base / "sys", base / "proc", base / "dev"
        for folder in (self.sys / "dev/block", self.sys / "block", self.proc / "self", self.dev):
            folder.mkdir(parents=True)
        self._nodes: dict[str, os.stat_result] = {}
        self._mounts: list[str] = []
        (self.proc / "self/mountinfo").write_text("")
        self.swaps([])

    def sysfs(self) -> Sysfs:
        return Sysfs(str(self.sys), str(self.proc), str(self.dev), stat=self._stat)

    def _stat(self, path: str) -> os.stat_result:
        link = os.readlink(path) if os.path.islink(path) else path
        if link in self._nodes:
            return self._nodes[link]
        raise FileNotFoundError(2, "no such file", path)

    def disk(self, name: str, devno: str, *, slaves: tuple[str, ...] = (), size: int = 2048) -> str:
        folder = self.sys / "devices/virtual/block" / name
        self._device(folder, devno, size)
        (folder / "slaves").mkdir()
        (folder / "queue").mkdir()
        (self.sys / "block" / name).symlink_to(folder)
        for slave in slaves:
            under = (self.sys / "dev/block" / slave).resolve()
            (folder / "slaves" / under.name).symlink_to(under)
            (under / "holders" / name).symlink_to(folder)
        return devno

    def partition(self, disk: str, number: int, devno: str, *, infix: str = "") -> str:
        folder = (self.sys / "dev/block" / disk).resolve()
        inner = folder / f"{folder.name}{infix}{number}"
        self._device(inner, devno, 1024)
        self.write(devno, "partition", str(number))
        return devno

    def loop(self, number: int, file: str) -> str:
        devno = self.disk(f"loop{number}", f"7:{number}")
        self.write(devno, "loop/backing_file", file)
        return devno

    def _device(self, folder: Path, devno: str, size: int) -> None:
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(f"{devno}\n")
        (folder / "size").write_text(f"{size}\n")
        (self.sys / "dev/block" / devno).symlink_to(folder)
        self.node(str(self.dev / folder.name.replace("!", "/")), devno)

    def write(self, devno: str, name: str, text: str) -> None:
        path = self.sys / "dev/block" / devno / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def node(self, path: str, devno: str) -> None:
        major, minor = map(int, devno.split(":"))
        self._put(path, stat.S_IFBLK | 0o660, rdev=os.makedev(major, minor))

    def put_file(self, path: str, devno: str) -> None:
        major, minor = map(int, devno.split(":"))
        self._put(path, stat.S_IFREG | 0o600, dev=os.makedev(major, minor))

    def _put(self, path: str, mode: int, *, rdev: int = 0, dev: int = 5) -> None:
        found = SimpleNamespace(st_mode=mode, st_rdev=rdev, st_dev=dev)
        self._nodes[path] = cast(os.stat_result, found)

    def mount(self, devno: str, point: str, fstype: str, source: str, options: str = "rw") -> None:
        self._mounts.append(f"36 35 {devno} / {point} rw shared:1 - {fstype} {source} {options}")
        (self.proc / "self/mountinfo").write_text("\n".join(self._mounts) + "\n")

    def swaps(self, paths: list[str]) -> None:
        head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        rows = (f"{path}  partition\t1048572\t\t0\t\t-2\n" for path in paths)
        (self.proc / "swaps").write_text(head + "".join(rows))

    def process(self, pid: int, comm: str, opened: dict[int, tuple[str, int]]) -> None:
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "fdinfo").mkdir()
        (folder / "comm").write_text(f"{comm}\n")
        for number, (path, flags) in opened.items():
            (folder / "fd" / str(number)).symlink_to(path)
            (folder / "fdinfo" / str(number)).write_text(
                f"pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t9\n"
            )
