"""What the tests of begin time and of whole copies share.

Two ways to copy under a load: `Rig.round`, in this process, dozens of times on one device, and
`run_copy`, the real command line.  Either way the kernel's own snapshot device is read by the
test, past the page cache, while the copy runs: the witness.  `TALLY` counts the begin times.

Loads: fio (random sizes, fsyncs), the self-proving one (`stamp`), numbered files (`files`).  Each
is bounded in time, must have written before the copy begins and still run when it ends.
"""

from __future__ import annotations

import calendar
import hashlib
import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from dmcopy.cli import demo_load
from dmcopy.cli.common import Context, load_targets
from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin
from dmcopy.engine.buffers import BufferPool
from dmcopy.engine.copier import Copier, Counts, DirectSource, SegmentReader
from dmcopy.engine.exceptions_view import CowView
from dmcopy.engine.validate import SnapshotValidator
from dmcopy.jobs.control import ask
from dmcopy.jobs.host import Host
from dmcopy.jobs.spec import Places
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.dmrequest import CONTROL, Probe
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.begin import splice
from dmcopy.stack.cow import CowDevice, CowDevices
from dmcopy.stack.discover import Provider, discover
from dmcopy.units import Bytes, Sectors, to_sectors
from tests.lab import stamp
from tests.lab.stage import CODE, Stage, patiently, sh

Event = dict[str, Any]  # Any: JSON

SLOW: Final = os.environ.get("LAB_GUEST") == "qemu"  # emulated: python is ten times slower
_LOAD_SECONDS: Final = 240
_LARGE: Final = 64 << 20  # bytes; what is larger is compared by digest, for the guest is small
_PATIENCE: Final = 60.0 if SLOW else 20.0
_SMALL_WRITES: Final = "4k/50:16k/25:64k/15:256k/8:1m/2"


# counting


@dataclass
class Tally:
    """The begin times of this session that were checked against a witness."""

    held: list[float] = field(default_factory=list)  # seconds

    def add(self, held: float) -> None:
        self.held.append(held)

    def __str__(self) -> str:
        if not self.held:
            return "no begin times checked"
        return (
            f"{len(self.held)} begin times checked; held: median "
            f"{statistics.median(self.held) * 1e3:.2f} ms, slowest {max(self.held) * 1e3:.2f} ms"
        )


TALLY: Final = Tally()


# small things


def devno(path: str) -> str:
    rdev = os.stat(path).st_rdev
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def sectors_of(path: str) -> int:
    return int(sh("blockdev", "--getsz", path))


def dm_name(path: str) -> str:
    return os.path.basename(path)


def table_text(path: str) -> str:
    return sh("dmsetup", "table", dm_name(path))


def minor(path: str) -> str:
    return sh("dmsetup", "info", "-c", "--noheadings", "-o", "name,major,minor,open", dm_name(path))


def read_fd(fd: int, length: int) -> bytes:
    """Read all of an fd that is open with O_DIRECT."""
    with mmap.mmap(-1, length) as memory, memoryview(memory) as view:
        done = 0
        while done < length:
            with view[done : done + (4 << 20)] as part:
                got = os.preadv(fd, [part], done)
            assert got, f"it ends at {done}, not at {length}"
            done += got
        return bytes(view)


def digest_of(fd: int, length: int) -> str:
    """Hash all of an fd that may be open with O_DIRECT, piece by piece."""
    digest = hashlib.sha256()
    with mmap.mmap(-1, 4 << 20) as memory, memoryview(memory) as view:
        done = 0
        while done < length:
            with view[: min(len(view), length - done)] as part:
                got = os.preadv(fd, [part], done)
                assert got, f"it ends at {done}, not at {length}"
                digest.update(part[:got])
            done += got
    return digest.hexdigest()


def read_device(path: str, length: int | None = None) -> bytes:
    """Read a device past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return read_fd(fd, os.lseek(fd, 0, os.SEEK_END) if length is None else length)
    finally:
        os.close(fd)


def write_device(path: str, data: bytes, offset: int = 0) -> None:
    """Write to a device past the page cache, and flush."""
    with mmap.mmap(-1, len(data)) as memory:
        memory[:] = data
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            assert os.pwritev(fd, [memory], offset) == len(data)
            os.fsync(fd)
        finally:
            os.close(fd)


def pattern(length: int, seed: int = 1) -> bytes:
    """Give content in which each 512 bytes say where they belong."""
    return b"".join(
        b"%d %d\n".ljust(64, b".") % (seed, sector) * 8 for sector in range(-(-length // 512))
    )[:length]


def differing(one: bytes, other: bytes) -> list[int]:
    """Give the first offsets, in units of 512 bytes, where two images are not the same."""
    if one == other:
        return []
    assert len(one) == len(other), f"{len(one)} bytes and {len(other)}"
    found = [at for at in range(0, len(one), 512) if one[at : at + 512] != other[at : at + 512]]
    return found[:10]


def nanoseconds(begin_time: str) -> int:
    """Read an event's ``begin_time``."""
    whole, _, rest = begin_time.removesuffix("Z").partition(".")
    assert len(rest) == 9, begin_time
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) * 10**9 + int(rest)


def writes_of(path: str) -> int:
    """Give how many writes a device has completed."""
    return int(Path(f"/sys/dev/block/{devno(path)}/stat").read_text().split()[4])


def host_in(folder: str) -> Host:
    """Give this host, with the job's records in *folder*."""
    host = Context(places=Places(Path(folder) / "state", Path(folder) / "run")).host()
    assert host.dm is not None
    load_targets(host)
    return host


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + _PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@contextmanager
def mounted(stage: Stage, image: str, options: str) -> Iterator[Path]:
    """Mount a copy."""
    point = Path(stage.folder) / "copied"
    point.mkdir(exist_ok=True)
    sh("mount", "-o", options, image, str(point))
    try:
        yield point
    finally:
        patiently("umount", str(point))


# loads


@contextmanager
def running(
    argv: Sequence[str], has_begun: Callable[[], bool], *, survives: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a load; it is killed at the end, and must not have ended by itself."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )

        def why(what: str) -> str:
            said.seek(0)
            return f"{argv[:3]}: {what}: {said.read().decode(errors='replace')[-2000:]}"

        try:
            deadline = time.monotonic() + _PATIENCE
            while not has_begun():
                assert process.poll() is None, why("the load ended at once")
                assert time.monotonic() < deadline, why("the load does not begin")
                time.sleep(0.02)
            yield process
            assert process.poll() is None or not survives, why("the load ended before the copy")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=30)


@contextmanager
def fio(target: str, device: str, *, iops: int = 150, size: str = "") -> Iterator[None]:
    """Write 4 KiB to 1 MiB at random places of *target*, which is *device* or lies on it."""
    argv = [
        "fio", "--name=load", f"--filename={target}", "--rw=randwrite", "--direct=1",
        f"--bssplit={_SMALL_WRITES}", "--ioengine=libaio", "--iodepth=8", "--fsync=16",
        "--time_based", f"--runtime={_LOAD_SECONDS}", f"--rate_iops={iops}", "--norandommap",
        "--randrepeat=0", "--allow_file_create=0", "--thread", "--end_fsync=0",
    ]  # fmt: skip
    if size:
        argv.append(f"--size={size}")
    before = writes_of(device)
    with running(argv, lambda: writes_of(device) > before + 8):
        yield


@contextmanager
def stamping(
    target: str, log: Path, *, seed: int, processes: int = 2, pause: float = 0.01
) -> Iterator[None]:
    """Run the self-proving load on a device or a file."""
    argv = [sys.executable, stamp.__file__, "load", target, "--log", str(log)]
    argv += ["--seed", str(seed), "--processes", str(processes), "--fsync-every", "16"]
    argv += ["--seconds", str(_LOAD_SECONDS), "--pause", str(pause), "--max-blocks", "32"]
    with running(argv, lambda: len(list(log.glob("log.*"))) == processes and _acknowledged(log)):
        yield


def _acknowledged(log: Path) -> bool:
    firsts = [path.read_bytes()[: stamp._LOG_START + 32][-8:] for path in log.glob("log.*")]
    return all(any(first) for first in firsts)


@contextmanager
def writing_files(mount: str, log: Path) -> Iterator[None]:
    """Write numbered files and a large one, each synced."""
    bulk = Path(mount) / demo_load.BULK_NAME
    with open(bulk, "wb") as file:
        file.write(os.urandom(4 << 20))
        file.flush()
        os.fsync(file.fileno())
    argv = [sys.executable, "-m", demo_load.__name__, mount, str(log), str(_LOAD_SECONDS)]

    def has_begun() -> bool:
        return log.exists() and len(log.read_text().splitlines()) > 2

    with running(argv, has_begun):
        yield


def prove_files(mount: str, log: Path, t0: int, t1: int) -> tuple[int, int]:
    """Prove that the files in *mount* are those of one instant in [t0, t1].

    Gives how many were safe before it, and how many were written after it.
    """
    safe = later = 0
    there = {int(path.name): path for path in Path(mount).iterdir() if path.name.isdecimal()}
    known = -1
    for line in log.read_text().splitlines():
        known, began, done = (int(word) for word in line.split())
        file = there.pop(known, None)
        if done < t0:
            safe += 1
            assert file is not None, f"file {known} was safe before begin time, and is missing"
            assert file.read_bytes() == demo_load.content(known), f"file {known} is not right"
        elif began > t1:
            later += 1
            assert file is None, f"file {known} was written after begin time, and is there"
    assert set(there) <= {known + 1}, "a file that the load does not know"
    return safe, later


# rounds in this process


@dataclass(frozen=True, kw_only=True)
class Point:
    """A begin time that was fixed, by whatever means."""

    source: str  # path
    cow: str  # path
    snapshot: str  # path
    snapshot_uuid: str
    origin_table: str
    t0: int  # ns
    t1: int


Begin = Callable[["Rig", int], AbstractContextManager[Point]]


@contextmanager
def begin_spliced(rig: Rig, chunk: int) -> Iterator[Point]:
    """Fix a begin time as dmcopy does."""
    sysfs = rig.host.sysfs
    source = discover(rig.origin, rig.dm, sysfs, want_splice=True)
    assert source.provider is Provider.SPLICE
    cow = CowDevices((CowDevice(rig.cow, devno(rig.cow), Sectors(sectors_of(rig.cow))),))
    spliced = splice(
        rig.dm, sysfs, job=rig.job, source=source, cow=cow, chunk=to_sectors(Bytes(chunk)),
        hold_limit=10.0, lvm=Lvm(rig.host.run),
    )  # fmt: skip
    spliced.plan.run(lambda what: None)
    try:
        instant = spliced.splice.instant
        assert instant is not None
        yield Point(
            source=sysfs.node(spliced.source.devno()),
            cow=sysfs.node(spliced.cow.devno()),
            snapshot=sysfs.node(spliced.snapshot.devno()),
            snapshot_uuid=spliced.snapshot.uuid,
            origin_table=str(spliced.origin_table()),
            t0=instant.begin_ns,
            t1=instant.begin_ns + round(instant.held * 1e9),
        )
    finally:
        spliced.plan.undo()


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one begin time gave."""

    point: Point
    image: Path
    wrong: list[int]  # where the copy is not what the kernel's snapshot says
    counts: Counts


class NoDeadMan:
    """Stands in for the dead man, whose process takes longer to start than all of a round.

    The hold is the same; what the dead man does is for the tests of his own.
    """

    fired = False

    def __init__(self, names: Sequence[str], *, limit: float) -> None:
        del names, limit

    def __enter__(self) -> NoDeadMan:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def arm(self) -> None:
        return

    def disarm(self) -> None:
        return


class Rig:
    """One origin that many begin times are fixed on, one after the other."""

    def __init__(self, stage: Stage, origin: str, cow: str) -> None:
        self.host = host_in(stage.folder)
        assert self.host.dm is not None
        self.dm: Dm = self.host.dm
        self.origin = origin
        self.cow = cow
        self.length = sectors_of(origin) * 512
        self.image = Path(stage.folder) / "image"
        self.job = f"{stage.name}-round"
        self._table = table_text(origin)
        self._minor = minor(origin).split(":")[:3]

    def round(
        self,
        *,
        chunk: int,
        segment: int,
        begin: Begin = begin_spliced,
        meanwhile: Callable[[], None] = lambda: None,
        dead_man: bool = False,
    ) -> Round:
        """Fix a begin time, copy, compare with the kernel's snapshot, take all apart."""
        with ExitStack() as stack:
            if not dead_man:
                stack.enter_context(patch("dmcopy.stack.hold.DeadMan", NoDeadMan))
            point = stack.enter_context(begin(self, chunk))
            meanwhile()
            witness: list[bytes] = []
            fd = os.open(point.snapshot, os.O_RDONLY | os.O_DIRECT)
            thread = threading.Thread(target=lambda: witness.append(read_fd(fd, self.length)))
            thread.start()
            try:
                counts = self._copy(point, segment)
            finally:
                thread.join()
                os.close(fd)
        assert len(witness) == 1, "the witness could not be read"
        assert table_text(self.origin) == self._table
        assert minor(self.origin).split(":")[:3] == self._minor
        wrong = differing(self.image.read_bytes(), witness[0])
        return Round(point=point, image=self.image, wrong=wrong, counts=counts)

    def _copy(self, point: Point, segment: int) -> Counts:
        size = to_sectors(Bytes(segment))
        with ExitStack() as stack:
            control = os.open(CONTROL, os.O_RDWR)
            stack.callback(os.close, control)
            source = stack.enter_context(BlockDevice.open(point.source))
            cow = stack.enter_context(BlockDevice.open(point.cow))
            sink = stack.enter_context(FileSink(self.image))
            pool = stack.enter_context(BufferPool(3, Bytes(segment)))
            with open(point.cow, "rb", buffering=0) as head:
                chunk = Sectors(int.from_bytes(head.read(16)[12:], "little"))
            view = CowView(
                cow.fd, point.cow, chunk=chunk, source=source.sectors, block=cow.logical_block
            )
            validator = SnapshotValidator(
                Probe(control, uuid=point.snapshot_uuid),
                Probe(control, devno=devno(self.origin)),
                point.origin_table.encode(),
            )
            reader = SegmentReader(DirectSource(source.fd, source.path), view, validator)
            whole = Extent(Sectors(0), source.sectors)
            return Copier(reader, sink, pool).copy(whole.split(size, align=size))


class FileSink:
    """An image in a file, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def __enter__(self) -> FileSink:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, at: Extent, data: memoryview) -> None:
        assert os.pwrite(self._fd, data, at.offset) == at.size

    def zero(self, at: Extent) -> None:
        assert os.pwrite(self._fd, bytes(at.size), at.offset) == at.size

    def flush(self) -> None:
        os.fsync(self._fd)


@contextmanager
def begin_broken(rig: Rig, chunk: int, *, early: bool, gap: float) -> Iterator[Point]:
    """Broken on purpose: the snapshot goes active *gap* seconds after the origin's swap.

    *early*: it is created before the swap (so that the kernel splits the origin's writes at the
    chunk size), else after it, and the origin is not suspended and resumed again.
    """
    dm, sysfs = rig.dm, rig.host.sysfs
    name = dm_name(rig.origin)
    original = dm.table(name)
    length = Sectors(rig.length // 512)
    zero = Sectors(0)
    write_device(rig.cow, bytes(2 * chunk))
    with ExitStack() as stack:

        def create(role: str, table: Table, *, active: bool = True) -> str:
            new, uuid = f"dmcopy-{rig.job}-{role}", f"DMCOPY-{rig.job}-{role}"
            stack.callback(patiently, "dmsetup", "remove", new)
            if active:
                dm.create(new, uuid, table)
            else:
                dm.create(new, uuid)
                dm.load(new, table)
            info = dm.info(new)
            assert info is not None
            return info.devno

        under = create("source", original)
        cow = create("cow", Table.of(Linear(Sectors(sectors_of(rig.cow)), devno(rig.cow), zero)))
        table = Table.of(Snapshot(length, under, cow, to_sectors(Bytes(chunk))))
        ours = Table.of(SnapshotOrigin(length, under))
        if early:
            create("snap", table, active=False)
        dm.load(name, ours)

        def put_back() -> None:
            dm.load(name, original)
            dm.resume(name, lockfs=False, flush=False)

        t0 = time.time_ns()
        dm.resume(name)
        stack.callback(put_back)
        t1 = time.time_ns()
        time.sleep(gap)
        if early:
            dm.resume(f"dmcopy-{rig.job}-snap")
        else:
            # above the source on the stack of undos, so that it goes before it
            create("snap", table)
            stack.callback(put_back)
        snapshot = dm.info(f"dmcopy-{rig.job}-snap")
        assert snapshot is not None
        yield Point(
            source=sysfs.node(under),
            cow=sysfs.node(cow),
            snapshot=sysfs.node(snapshot.devno),
            snapshot_uuid=snapshot.uuid,
            origin_table=str(ours),
            t0=t0,
            t1=t1,
        )


# the command line


@dataclass
class Copied:
    """What ``dmcopy copy --json`` said and did."""

    status: int
    events: list[Event]
    stderr: str
    witness: bytes | None
    witness_digest: str | None = None  # instead, where the device is large

    def event(self, name: str) -> Event:
        return next(event for event in self.events if event["event"] == name)

    @property
    def ended(self) -> Event:
        return self.event("ended")

    @property
    def t0(self) -> int:
        return nanoseconds(self.event("begun")["begin_time"])

    @property
    def held(self) -> float:
        return float(self.event("begun")["hold_seconds"][0])

    @property
    def t1(self) -> int:
        return self.t0 + round(self.held * 1e9)


def run_copy(
    folder: str,
    source: str,
    destination: str,
    *options: str,
    witness: bool = True,
    vg: str | None = None,
    at: dict[str, Callable[[Event], None]] | None = None,
) -> Copied:
    """Run ``dmcopy copy``; *at* has what is done in the moment of an event.

    With *witness* the kernel's snapshot is opened before begin time and read when it has begun;
    nothing is copied before, for what is copied and retired is the kernel's image no more.  With a
    *vg* the snapshot is one that LVM makes in there.
    """
    name = f"t{time.monotonic_ns()}"
    argv = [sys.executable, "-m", "dmcopy", "copy", source, destination]
    argv += ["--name", name, "--json", *options, *(["--hold-start"] if witness else [])]
    places = {
        "DMCOPY_STATE_DIR": f"{folder}/state",
        "DMCOPY_RUN_DIR": f"{folder}/run",
        "DMCOPY_CODE_DIR": CODE,
    }
    copied = Copied(-1, [], "", None)
    with ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
            env=os.environ | places,
        )  # fmt: skip
        stack.callback(process.wait, 60)
        stack.callback(process.kill)
        assert process.stdout is not None
        path = f"/dev/mapper/dmcopy-{name}-snap"
        if vg is not None:
            path = f"/dev/mapper/{vg}-dmcopy_{name}"
            # lvcreate makes the COW device under this name first, and must be able to remove it
            while witness and not is_volume_ready(path) and process.poll() is None:
                time.sleep(0.01)
        snapshot = _when_there(path, process) if witness else None
        try:
            for line in process.stdout:
                event = json.loads(line)
                copied.events.append(event)
                if event["event"] == "begun" and snapshot is not None:
                    here = f"{os.major(os.fstat(snapshot).st_rdev)}:"
                    here += f"{os.minor(os.fstat(snapshot).st_rdev)}"
                    assert devno(event["snapshot"]) == here
                    length = os.lseek(snapshot, 0, os.SEEK_END)
                    if length <= _LARGE:
                        copied.witness = read_fd(snapshot, length)
                    else:
                        copied.witness_digest = digest_of(snapshot, length)
                    os.close(snapshot)
                    snapshot = None
                if event["event"] == "paused" and witness:
                    ask(Places(Path(folder) / "state", Path(folder) / "run").desks, name, "resume",
                        timeout=60.0)  # fmt: skip
                word = event["event"]
                word = f"hold:{event['reason']}" if word == "hold" else word
                if at and word in at:
                    at.pop(word)(event)
        finally:
            if snapshot is not None:
                os.close(snapshot)
        copied.status = process.wait(timeout=60)
        said.seek(0)
        copied.stderr = said.read().decode(errors="replace")
    return copied


def is_volume_ready(path: str) -> bool:
    """Tell whether LVM has made a snapshot, thick or thin, of what has this path."""
    with suppress(OSError):
        folder = Path(f"/sys/dev/block/{devno(path)}")
        under = {(Path(one) / "dm/name").read_text().strip() for one in folder.glob("slaves/*")}
        return any(name.endswith(("-cow", "-tpool")) for name in under)
    return False


def _when_there(path: str, process: subprocess.Popen[bytes]) -> int | None:
    # no limit but the program's own: under QEMU it takes its time to start
    while process.poll() is None:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_DIRECT)
        time.sleep(0.003)
    return None


def image_of(folder: str, name: str = "copy.img") -> str:
    return f"{folder}/{name}"


def assert_well(copied: Copied, length: int) -> None:
    """The copy went well."""
    assert copied.status == 0, f"{copied.stderr}\n{copied.events[-1:]}"
    assert copied.stderr == ""
    assert copied.ended["state"] == "ended"
    assert copied.ended["left"] == []
    assert copied.ended["bytes_total"] == length
    assert copied.ended["bytes_source"] + copied.ended["bytes_cow"] == length
    TALLY.add(copied.held)


def assert_copied(copied: Copied, image: bytes) -> None:
    """The copy went well, and *image* is what the kernel's snapshot held."""
    assert_well(copied, len(image))
    assert copied.witness is not None, "the kernel's snapshot was not read"
    assert differing(image, copied.witness) == []


def assert_large_copied(copied: Copied, path: str) -> None:
    """The same for a large image, a device or a file."""
    direct = 0 if os.path.isfile(path) else os.O_DIRECT
    fd = os.open(path, os.O_RDONLY | direct)
    try:
        length = os.lseek(fd, 0, os.SEEK_END)
        assert_well(copied, length)
        assert copied.witness_digest is not None, "the kernel's snapshot was not read"
        assert digest_of(fd, length) == copied.witness_digest == copied.ended["digest"]
    finally:
        os.close(fd)
