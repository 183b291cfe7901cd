"""``dmcopy demo``: the main job on something real, with nothing to prepare.

It builds an md RAID1 over two loop files, a dm device over that, ext4 on it, and lets an
application write to it; copies it live; and proves the copy against the kernel's own view of
the begin time, with e2fsck, and file by file.  Everything is removed at the end, whatever
happens.  On a kernel without device-mapper it does the same in the lab guest.
"""

from __future__ import annotations

import argparse
import calendar
import hashlib
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import dmcopy
from dmcopy.cli import demo_load
from dmcopy.cli.common import Commands, Context, consoles, load_targets, size
from dmcopy.core.events import Begun, Ended, Event
from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.errors import DmcopyError, ProgramMissing
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import prepare
from dmcopy.jobs.runner import CopyJob
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.kernel import udev
from dmcopy.kernel.blkdev import BlockDevice, pread_full
from dmcopy.kernel.command import hand_over, start_process
from dmcopy.kernel.loop import LoopDevice
from dmcopy.kernel.loop import clear as clear_loop
from dmcopy.kernel.own_code import helper
from dmcopy.report.text import TextReport
from dmcopy.stack.steps import remove_device
from dmcopy.units import MIB, Bytes, Sectors, format_size, sectors_down

_DEFAULT_SIZE: Final = Bytes(128 * MIB)
_SMALLEST: Final = Bytes(32 * MIB)
_BULK_SHARE: Final = 2  # the application's large file takes one half of the device
_LOAD_SECONDS: Final = 120.0
_WARM_UP_SECONDS: Final = 1.0
_NAME: Final = "dmcopy-demo-data"
_UUID: Final = "DEMO-dmcopy-demo-data"  # not DMCOPY-: to dmcopy it is anybody's device
_FIRST_MD: Final = 120
_SETTLE_SECONDS: Final = 10.0
_PIECE: Final = Bytes(4 * MIB)
_TOOLS: Final = {"mdadm": "mdadm", "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs"}


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="show and prove the main job on a RAID of its own",
        description="Build an md RAID1 over loop files with ext4 on it, write to it, copy it "
        "live, prove the copy, and clean up.  Touches no device of yours.  On a kernel without "
        "device-mapper it runs in the lab guest.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--size",
        type=size,
        default=_DEFAULT_SIZE,
        help=f"size of the device to copy (default: {format_size(_DEFAULT_SIZE)})",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Run the demo here, or in the lab guest."""
    host = context.host()
    if host.dm is None:
        _run_in_lab(arguments.size)
    if arguments.size < _SMALLEST:
        raise DmcopyError(f"the demo needs at least {format_size(_SMALLEST)}")
    load_targets(host)
    for tool, package in _TOOLS.items():
        if host.run.find(tool) is None:
            raise ProgramMissing(f"the demo needs {tool}: apt-get install {package}")
    with ExitStack() as stack:
        return _Demo(host, arguments.size, stack).run()


def _run_in_lab(size_: Bytes) -> None:
    """Replace this process by the same demo in a guest; raises where there is no lab."""
    checkout = Path(dmcopy.__file__).resolve().parent.parent
    if not (checkout / "lab" / "__main__.py").is_file():
        raise DmcopyError(
            "this kernel has no device-mapper (no /dev/mapper/control), and the lab that could "
            "stand in for it comes only with a checkout of dmcopy"
        )
    print("this kernel has no device-mapper: the demo runs in the lab guest", file=sys.stderr)
    terminal = ["--tty"] if sys.stdin.isatty() and sys.stderr.isatty() else []
    lab = [sys.executable, "-m", "lab", "run", *terminal, "--memory", "2G", "--timeout", "600"]
    inside = ["python3", "-m", "dmcopy", "demo", "--size", str(size_)]
    hand_over([*lab, "--", *inside], directory=str(checkout))


class _Demo:
    """One run; everything it makes is undone by *stack*."""

    def __init__(self, host: Host, size_: Bytes, stack: ExitStack) -> None:
        self._stack = stack
        self._size = size_
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dmcopy-demo-"))
        self._folder = Path(folder)
        places = Places(self._folder / "state", self._folder / "run")
        self._host = replace(host, places=places)
        self._out, self._err = consoles()
        self._witness = ""

    def run(self) -> int:
        """Build, copy, prove; gives the exit status."""
        origin = self._build()
        mount = self._folder / "mount"
        self._mount(origin, mount)
        bulk = self._fill(mount)
        self._say(f"ext4 on it is mounted, {format_size(bulk)} of data written and synced")
        log = self._folder / "load.log"
        with self._load(mount, log):
            self._say("an application writes to it, and goes on writing")
            time.sleep(_WARM_UP_SECONDS)
            before = _last_number(log)
            target = self._loop("copy", self._size)
            ended = self._copy(origin, target)
            if ended.error is not None:
                print(f"dmcopy: {ended.error}", file=sys.stderr)
                return ended.exit_status
            after = _last_number(log)
        self._say(f"the application wrote {after - before} files while dmcopy ran")
        wrong = self._prove(ended, target, log)
        for line in wrong:
            self._out.print(f"WRONG: {line}", style="bold red")
        return 1 if wrong else 0

    def _say(self, line: str) -> None:
        self._out.print(line, style="cyan", markup=False)

    def _right(self, line: str) -> None:
        self._out.print(f"proved: {line}", style="green", markup=False)

    def _tool(self, *argv: str, ok: tuple[int, ...] = (0,)) -> str:
        return self._host.run.run(*argv, ok=ok, timeout=120).stdout

    def _loop(self, name: str, size_: Bytes) -> str:
        """Make a loop device over a new sparse file; gives its path."""
        file = self._folder / name
        with open(file, "wb") as made:
            made.truncate(size_)
        loop = LoopDevice.attach(str(file), autoclear=False)
        self._stack.callback(clear_loop, loop.path)
        loop.leave()  # a destination that we have open ourselves would be refused
        return loop.path

    def _build(self) -> str:
        """Make the RAID1 and a dm device over it; gives the path of the latter."""
        legs = [self._loop(name, Bytes(self._size + 4 * MIB)) for name in ("disk-a", "disk-b")]
        self._host.run.run("modprobe", "--quiet", "raid1", ok=(0, 1))
        array = _free_md()
        self._tool(
            "mdadm",
            "--create",
            array,
            "--run",
            "--quiet",
            "--level=1",
            "--raid-devices=2",
            "--metadata=1.2",
            "--data-offset=1M",
            "--bitmap=none",
            "--assume-clean",
            "--homehost=dmcopy-demo",
            *legs,
        )
        self._stack.callback(self._tool, "mdadm", "--stop", "--quiet", array)
        sysfs, dm = self._host.sysfs, self._host.dm
        assert dm is not None
        length = sectors_down(self._size)
        table = Table.of(Linear(length, sysfs.devno_of(array), Sectors(0)))
        info = dm.create(_NAME, _UUID, table)
        self._stack.callback(remove_device, dm, _NAME, _UUID)
        self._say(f"made {array}, a RAID1 of two files, and the dm device {_NAME} over it")
        udev.settle(_SETTLE_SECONDS)  # udev makes the link that a person would type
        link = f"/dev/mapper/{_NAME}"
        return link if os.path.exists(link) else sysfs.node(info.devno)

    def _mount(self, origin: str, mount: Path) -> None:
        self._tool("mkfs.ext4", "-q", origin)
        mount.mkdir()
        self._tool("mount", "-o", "noatime", origin, str(mount))
        self._stack.callback(self._tool, "umount", str(mount))

    def _fill(self, mount: Path) -> int:
        bulk = self._size // _BULK_SHARE
        with open(mount / demo_load.BULK_NAME, "wb") as file:
            for _ in range(bulk // _PIECE):
                file.write(os.urandom(_PIECE))
            file.flush()
            os.fsync(file.fileno())
        return bulk

    @contextmanager
    def _load(self, mount: Path, log: Path) -> Iterator[None]:
        argv = [str(mount), str(log), str(_LOAD_SECONDS)]
        process = start_process(helper(demo_load.__name__, *argv))
        try:
            yield
        finally:
            process.kill()
            process.wait(timeout=30)

    def _copy(self, origin: str, target: str) -> Ended:
        spec = CopySpec(name="demo", source=origin, destination=f"block:{target}", verify=True)
        prepared = prepare(spec, self._host)
        report = TextReport(self._out, self._err)
        self._say("dmcopy copy " + " ".join([origin, target, "--verify"]))
        try:
            with Journal(self._host.places.journal) as journal:
                report(prepared.planned())
                observer = self._with_witness(report)
                return CopyJob(prepared, self._host, journal, observer, resumable=False).run()
        finally:
            report.close()

    def _with_witness(self, report: Callable[[Event], None]) -> Callable[[Event], None]:
        def observe(event: Event) -> None:
            report(event)
            if isinstance(event, Begun) and event.snapshot is not None:
                self._say(f"reading {event.snapshot}, the kernel's own view of the begin time")
                self._witness = _digest(event.snapshot)

        return observe

    def _prove(self, ended: Ended, target: str, log: Path) -> list[str]:
        """Compare the copy with every witness; gives what is wrong, best nothing."""
        wrong = []
        copied = _digest(target)
        if copied == self._witness == ended.digest:
            self._right(f"the copy is the begin-time image, bit for bit: sha256 {copied}")
        else:
            wrong.append(f"sha256: copy {copied}, kernel {self._witness}, job {ended.digest}")
        checked = self._host.run.run(
            "e2fsck", "-f", "-n", target, ok=tuple(range(256)), timeout=120
        )
        if checked.status == 0:
            self._right("e2fsck finds the copied file system clean")
        else:
            wrong.append(f"e2fsck: {checked.stdout.strip()}")
        copy = self._folder / "copied"
        copy.mkdir()
        self._tool("mount", "-o", "ro,noload", target, str(copy))
        try:
            return wrong + self._prove_files(ended, copy, log)
        finally:
            self._tool("umount", str(copy))

    def _prove_files(self, ended: Ended, copy: Path, log: Path) -> list[str]:
        assert ended.begin_time is not None
        begin = _nanoseconds(ended.begin_time)
        end = begin + round(ended.hold_seconds[0] * 1e9)
        wrong, safe, later = [], 0, 0
        for line in log.read_text().splitlines():
            number, began, done = (int(word) for word in line.split())
            file = copy / f"{number:06d}"
            if done < begin:
                safe += 1
                if not file.exists() or file.read_bytes() != demo_load.content(number):
                    wrong.append(f"file {number} was safe before the begin time, but is not right")
            elif began > end:
                later += 1
                if file.exists():
                    wrong.append(f"file {number} was written after the begin time, but is there")
        if not wrong:
            self._right(
                f"{safe} files synced before the begin time are in the copy, none of the "
                f"{later} written after it"
            )
        return wrong


def _last_number(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def _nanoseconds(text: str) -> int:
    """Read `stack.hold.Instant.text` back."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    stamp = time.strptime(whole + " UTC", "%Y-%m-%dT%H:%M:%S %Z")
    return calendar.timegm(stamp) * 1_000_000_000 + int(rest)


def _free_md() -> str:
    for number in range(_FIRST_MD, 128):
        if not os.path.exists(f"/sys/block/md{number}"):
            return f"/dev/md{number}"
    raise DmcopyError(f"all of /dev/md{_FIRST_MD} to /dev/md127 are taken")


def _digest(path: str) -> str:
    """Hash a whole device, past the page cache."""
    digest = hashlib.sha256()
    with BlockDevice.open(path) as device, mmap.mmap(-1, _PIECE) as buffer:
        view = memoryview(buffer)
        for offset in range(0, device.size, _PIECE):
            part = view[: min(_PIECE, device.size - offset)]
            pread_full(device.fd, part, offset)
            digest.update(part)
            part.release()
        view.release()
    return digest.hexdigest()
