"""A copy that is disturbed: devices, a load, the real command line, and what must be true after.

What is asked of the system goes by its own tools (dmsetup, losetup), not by dmcopy.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import io
import json
import logging
import mmap
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import sh as _sh  # noqa: F401 (for the forks: dmcopy imports it where it starts a program)

from dmcopy.cli.common import Context
from dmcopy.cli.main import COMMANDS, main
from lab import residue
from tests.lab import stamp
from tests.lab.harness import nanoseconds
from tests.lab.stage import CODE, Stage, patiently, sh

for _command in sorted({*COMMANDS.values()}):  # for the forks, too: each would import it anew
    importlib.import_module(f"dmcopy.cli.{_command}")

CHECKOUT: Final = Path(__file__).parents[2]
SLACK: Final = 1.0 if os.environ.get("LAB_GUEST") == "uml" else 3.0  # seconds a slow guest may add
_PATIENCE: Final = 30.0
_HELPERS: Final = (
    "dmcopy.jobs.worker",
    "dmcopy.stack.keep",
    "dmcopy.stack.watch",
    "dmcopy.stack.unbrake",
    "dmcopy.stack.md_keeper",
    "dmcopy.stack.md_thaw",
)


class Ran(NamedTuple):
    """A command that ended; *status* is negative for a signal."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def events(self) -> list[dict[str, Any]]:  # Any: JSON
        return [json.loads(line) for line in self.stdout.splitlines()]

    def event(self, name: str) -> dict[str, Any]:  # Any: JSON
        return [event for event in self.events if event["event"] == name][-1]

    def of_kind(self, name: str) -> list[dict[str, Any]]:  # Any: JSON
        return [event for event in self.events if event["event"] == name]

    @property
    def said(self) -> str:
        """The one line on stderr."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, f"not one line: {self}"
        return lines[0]


class Running:
    """A ``dmcopy`` that goes on; its events are read as they come."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dmcopy", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._started = time.monotonic()

    def wait_for(self, name: str) -> dict[str, Any]:  # Any: JSON
        """Read events up to the next one called *name*."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
            event: dict[str, Any] = json.loads(line)  # Any: JSON
            if event["event"] == name:
                return event
        raise AssertionError(f"it ended without {name}: {self.ended()}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def ended(self, timeout: float = 60.0) -> Ran:
        stdout, stderr = self.process.communicate(timeout=timeout)
        seconds = time.monotonic() - self._started
        return Ran(self.process.returncode, "".join(self._lines) + stdout, stderr, seconds)


def helpers() -> dict[int, str]:
    """Give the worker and dead man processes that live, by pid."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                for name in _HELPERS:
                    if name in words:
                        found[int(entry.name)] = name
    return found


def kill_all(running: Running) -> None:
    """Kill a program and all its helpers at once."""
    running.kill()
    for pid in helpers():
        with suppress(ProcessLookupError):  # it ended with the other
            os.kill(pid, signal.SIGKILL)


def worker_pid() -> int:
    """Give the pid of the one worker that lives."""
    (pid,) = (pid for pid, name in helpers().items() if name == "dmcopy.jobs.worker")
    return pid


def until(is_so: Callable[[], object], what: str, *, patience: float = _PATIENCE) -> float:
    """Wait; give the seconds that it took."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < patience, f"not within {patience} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - start


def no_helpers() -> None:
    """Worker and dead man end by themselves, even when they were killed in their cradle."""
    end = time.monotonic() + _PATIENCE
    while left := helpers():
        assert time.monotonic() < end, [
            (name, pid, Path(f"/proc/{pid}/status").read_text()) for pid, name in left.items()
        ]
        time.sleep(0.02)


def is_suspended(path: str) -> bool:
    number = os.stat(path).st_rdev  # read, not asked: starting dmsetup takes long
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return (folder / "dm/suspended").read_text().strip() == "1"


def fill_fork() -> None:
    """In a fork that goes on: have what it will touch at once, where that is faster."""
    if (fill := getattr(ctypes.CDLL(None), "lab_fill_fork", None)) is not None:  # lab/prefault.c
        fill()


def timed_write(path: str, offset: int = -4096) -> float:
    """Write one block past the page cache; from the end where *offset* is negative."""
    with mmap.mmap(-1, 4096) as page:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            at = offset if offset >= 0 else os.lseek(fd, 0, os.SEEK_END) + offset
            start = time.monotonic()
            assert os.pwrite(fd, page, at) == len(page)
            return time.monotonic() - start
        finally:
            os.close(fd)


def reload(name: str, table: str) -> None:
    """Swap a table in, as a stranger would."""
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    sh("dmsetup", "load", name, "--table", table)
    sh("dmsetup", "resume", "--noudevsync", name)


def sectors(path: str) -> int:
    return int(sh("blockdev", "--getsz", path))


@dataclass
class Scene:
    """A stage and the places of one dmcopy."""

    stage: Stage

    def __post_init__(self) -> None:
        self.folder = Path(self.stage.folder)
        self.state = self.folder / "state"
        self.environment = {
            "DMCOPY_STATE_DIR": str(self.state),
            "DMCOPY_RUN_DIR": str(self.folder / "runtime"),
            "DMCOPY_CODE_DIR": CODE,
        }

    # devices

    def origin(self, mib: int = 8, *, under: str | None = None) -> str:
        return self.stage.linear(under or self.stage.disk(mib))

    def slow(self, disk: str, *, read_ms: int = 0, write_ms: int = 0) -> str:
        """Lay a delay over *disk*."""
        size = sectors(disk)
        return self.stage.dm(f"0 {size} delay {disk} 0 {read_ms} {disk} 0 {write_ms}")

    def hurry(self, slow: str) -> None:
        """Take the delay of a `slow` device away: what was to be seen meanwhile was seen."""
        table = sh("dmsetup", "table", slow).split()
        table[5] = table[8] = "0"
        reload(slow, " ".join(table))

    def hold_open(self, path: str) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.stage.later(os.close, fd)
        return fd

    # dmcopy

    def start(self, *argv: str) -> Running:
        running = Running(argv, self.environment)

        def end() -> None:
            running.process.kill()
            running.process.wait()
            for stream in (running.process.stdout, running.process.stderr):
                assert stream is not None
                stream.close()

        self.stage.later(end)
        return running

    def run(self, *argv: str, timeout: float = 90.0) -> Ran:
        """Run the real program to its end."""
        return self.start(*argv).ended(timeout)

    def fork(
        self, *argv: str, prepare: Callable[[], Context | None] | None = None, timeout: float = 90.0
    ) -> Ran:
        """Run the command line in a fork of this process, which has everything imported."""
        started = time.monotonic()
        out, err = self.folder / "stdout", self.folder / "stderr"
        pid = self.spawn(argv, out, err, prepare=prepare)
        end = time.monotonic() + timeout
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise AssertionError(f"{argv} did not end: {out.read_text()}{err.read_text()}")
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(status)
        return Ran(code, out.read_text(), err.read_text(), time.monotonic() - started)

    def spawn(
        self,
        argv: Sequence[str],
        out: Path,
        err: Path,
        *,
        prepare: Callable[[], Context | None] | None = None,
    ) -> int:
        """Begin such a fork, which writes to *out* and *err*; the caller waits for the pid."""
        gc.freeze()  # the fork's collections would touch, and so copy, every page of pytest's
        pid = os.fork()
        if pid == 0:
            self._child(argv, prepare, out, err)
        return pid

    def _child(
        self,
        argv: Sequence[str],
        prepare: Callable[[], Context | None] | None,
        out: Path,
        err: Path,
    ) -> None:
        status = 99
        try:
            os.setsid()
            os.environ.update(self.environment)
            for number, path in ((1, out), (2, err)):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(fd, number)
                os.close(fd)
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
            logging.getLogger().handlers.clear()  # pytest's
            made = prepare() if prepare is not None else None
            fill_fork()  # in the control group that it may have gone into
            status = main(argv, made)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            sys.stderr.write(traceback.format_exc())
        finally:
            os._exit(status)

    # the application

    @contextmanager
    def load(self, device: str, *, pause: float = 0.005, max_blocks: int = 4) -> Iterator[Path]:
        """Write to *device* all the time; a write that fails fails the test.  Gives the log."""
        log = Path(self.stage.file(0) + "-log")
        process = subprocess.Popen(
            [
                sys.executable, stamp.__file__, "load", device,
                "--log", str(log), "--seconds", "500",
                "--pause", str(pause), "--max-blocks", str(max_blocks),
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: log.is_dir() and any(log.iterdir()), "the load writes")
            yield log
            assert process.poll() is None, "the load ended: a write failed"
        finally:
            process.terminate()
            status = process.wait(timeout=30)
        assert status == 0, "the load saw an error"

    # what must be true

    def picture(self, *devices: str) -> dict[str, str]:
        """Give everything that a refused command must not change."""
        files = sorted(str(path) for path in self.folder.rglob("*") if path.name[:3] != "std")
        block = Path("/sys/block")
        return {
            "tables": sh("dmsetup", "table", "--showkeys"),
            "info": sh("dmsetup", "info", "--columns", "--noheadings", "-o", "name,uuid,attr"),
            "loops": "\n".join(sorted(residue.loops())),
            "read-only": "\n".join(f"{p} {p.read_text()}" for p in sorted(block.glob("*/ro"))),
            "files": "\n".join(files),
            "dev": "\n".join(sorted(os.listdir("/dev"))),
        } | {device: digest(device) for device in devices}

    def assert_clean(self, origin: str, table: str) -> None:
        """Nothing of dmcopy's is left, and the origin is as it was and takes writes."""
        self.assert_back(origin, table)
        assert timed_write(origin) < 1 + SLACK

    def assert_back(self, origin: str, table: str) -> None:
        """The same, without a write, which the image of a load that proves itself must not have."""
        assert sh("dmsetup", "table", origin) == table
        info = sh("dmsetup", "info", "--columns", "--noheadings", "-o", "name,attr,uuid")
        assert f"{os.path.basename(origin)}:L--w:" in info, "live, nothing loaded, not suspended"
        assert "DMCOPY" not in info
        of_ours = f" {self.state}/"
        until(
            lambda: not [loop for loop in residue.loops() if of_ours in loop],
            "the loop device went",
            patience=5,
        )
        left = [str(p) for p in self.folder.rglob("*") if p.suffix in (".cow", ".partial")]
        assert left == []
        no_helpers()
        keys = [line.split()[0] for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]]
        assert not [key for key in keys if (int(key) & 0xFFFFFFFF) >> 16 == 0x0D4D]


def assert_proved(ran: Ran, log: Path, image: str) -> None:
    """The copy went well, and *image* is that of one instant, as the load's *log* says."""
    assert ran.status == 0, ran
    begin = nanoseconds(ran.event("begun")["begin_time"])
    end = begin + int(ran.event("begun")["hold_seconds"][0] * 1e9)
    verdict = stamp.check(image, log, 1, t0=begin, t1=end)
    assert verdict.is_good, verdict.wrong


def digest(path: str) -> str:
    """Give a digest of all bytes, of a device past the page cache."""
    with mmap.mmap(-1, 1 << 20) as block:
        fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if path.startswith("/dev/") else 0))
        try:
            found = hashlib.sha256()
            while got := os.readv(fd, [block]):
                found.update(memoryview(block)[:got])
            return found.hexdigest()
        finally:
            os.close(fd)


@contextmanager
def scene(name: str) -> Iterator[Scene]:
    """Give a scene; everything is taken down again."""
    stage = Stage(f"dmct-{name}")
    try:
        yield Scene(stage)
    finally:
        patiently("udevadm", "settle", "--timeout=20")
        stage.close()
