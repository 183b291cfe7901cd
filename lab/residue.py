"""What a test left behind in the kernel: found, told, and taken away by force.

A lab test owns all that it makes.  What is not gone when it ends would disturb the next one,
so it fails the test that left it, and is then removed without asking anybody politely.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

_COOKIE_MAGIC: Final = 0x0D4D  # libdevmapper, lib/libdm-common.c: DM_COOKIE_MAGIC
# System daemons that lvm, mdadm and udev start when they please; none is a test's own.
# (Where systemd runs, udev's rule for LVM uses systemd-run, which has dbus-daemon started.)
_DAEMONS: Final = frozenset(
    {"dbus-daemon", "dmeventd", "lvmpolld", "mdadm", "systemd-udevd", "(udev-worker)"}
)
_FLAGS: Final = 5  # of the numbers behind the state in /proc/PID/stat
_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
_OURS: Final = re.compile(r"dmcopy|dmc[-_.]")
_FOLDERS: Final = ("/run", "/dev/shm", "/var/lib/dmcopy", "/run/dmcopy")


@dataclass(frozen=True)
class Census:
    """What there is at one moment, each thing by a name that a person understands."""

    dm: frozenset[str]
    suspended: frozenset[str]
    loops: frozenset[str]
    arrays: frozenset[str]
    mounts: frozenset[str]
    swaps: frozenset[str]
    cookies: frozenset[str]
    files: frozenset[str]
    processes: frozenset[str]

    def beyond(self, before: Census) -> list[str]:
        """Say what is here and was not there *before*; a suspended device always counts."""
        said = []
        for field in fields(self):
            now: frozenset[str] = getattr(self, field.name)
            then: frozenset[str] = getattr(before, field.name)
            extra = now if field.name == "suspended" else now - then
            said += [f"{field.name}: {thing}" for thing in sorted(extra)]
        return said


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _first(path: Path) -> str:
    return next(iter(_lines(str(path))), "")


def process(stat: str) -> str:
    """Give "pid name" from a /proc/PID/stat, "" for what is no program: proc(5)."""
    pid, _, rest = stat.partition(" (")
    name, _, words = rest.rpartition(") ")
    state, *numbers = words.split()
    is_thread_of_kernel = int(numbers[_FLAGS]) & _PF_KTHREAD
    return "" if state == "Z" or is_thread_of_kernel else f"{pid} {name}"


def _processes() -> frozenset[str]:
    # one file each: a hundred are looked at before and after each test
    stats = [_first(Path(f"/proc/{name}/stat")) for name in os.listdir("/proc") if name.isdecimal()]
    found = {process(stat) for stat in stats if stat} - {""}
    return frozenset(one for one in found if one.partition(" ")[2] not in _DAEMONS)


def cookie_ids(text: str) -> frozenset[int]:
    """Give the ids of udev cookies' semaphores from /proc/sysvipc/sem."""
    found = set()
    for line in text.splitlines()[1:]:
        key, ident = line.split()[:2]
        if (int(key) & 0xFFFFFFFF) >> 16 == _COOKIE_MAGIC:
            found.add(int(ident))
    return frozenset(found)


def loops() -> frozenset[str]:
    """Give "/dev/loopN FILE" of each loop device that has one."""
    return frozenset(
        f"/dev/{path.parent.parent.name} {_first(path)}"
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
    )


def census() -> Census:
    """Look at the kernel as it is now."""
    block = Path("/sys/block")
    dm = {path: _first(path / "dm/name") for path in block.glob("dm-*")}
    dm = {path: name for path, name in dm.items() if name}
    return Census(
        dm=frozenset(dm.values()),
        suspended=frozenset(dm[path] for path in dm if _first(path / "dm/suspended") == "1"),
        loops=loops(),
        arrays=frozenset(
            f"/dev/{path.parent.parent.name}"
            for path in block.glob("md*/md/array_state")
            if _first(path) not in ("clear", "")
        ),
        mounts=frozenset(line.split()[4] for line in _lines("/proc/self/mountinfo")),
        swaps=frozenset(line.split()[0] for line in _lines("/proc/swaps")[1:]),
        cookies=frozenset(
            str(ident) for ident in cookie_ids(Path("/proc/sysvipc/sem").read_text())
        ),
        files=frozenset(
            f"{folder}/{name}"
            for folder in (*_FOLDERS, tempfile.gettempdir())
            if os.path.isdir(folder)
            for name in os.listdir(folder)
            if _OURS.match(name) or folder.endswith("dmcopy")
        ),
        processes=_processes(),
    )


def left_behind(before: Census, *, patience: float) -> list[str]:
    """Say what is left since *before*; udev is given *patience* seconds to let go."""
    end = time.monotonic() + patience
    while (left := census().beyond(before)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def _try(*argv: str) -> None:
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)


def _new(before: Census, what: Callable[[Census], frozenset[str]]) -> list[str]:
    return sorted(what(census()) - what(before), reverse=True)


def clean(before: Census) -> list[str]:
    """Take away by force what was not there *before*; gives what resists."""
    for _ in range(4):  # stacks have layers
        for name in census().suspended:
            _try("dmsetup", "resume", "--noudevsync", "--", name)
        for process in _new(before, lambda now: now.processes):
            with suppress(ProcessLookupError):
                os.kill(int(process.split()[0]), signal.SIGKILL)
        for point in _new(before, lambda now: now.mounts):
            _try("umount", "--lazy", "--", point)
        for device in _new(before, lambda now: now.swaps):
            _try("swapoff", "--", device)
        for name in _new(before, lambda now: now.dm):
            _try("dmsetup", "remove", "--force", "--noudevsync", "--", name)
        for device in _new(before, lambda now: now.arrays):
            _try("mdadm", "--stop", device)
        for device in _new(before, lambda now: now.loops):
            _try("losetup", "--detach", device.split()[0])
        for ident in _new(before, lambda now: now.cookies):
            _try("ipcrm", "--semaphore-id", ident)
        for path in _new(before, lambda now: now.files):
            _try("rm", "-rf", "--one-file-system", "--", path)
        if not left_behind(before, patience=0.5):
            return []
    return left_behind(before, patience=0.0)
