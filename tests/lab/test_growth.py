"""The COW device grows under load: the point in time stays, and it is still that of begin time.

The origin is filled with a pattern, the begin time fixed, and only then does the load begin, so
that the pattern is the witness.  The load would overflow the COW device many times over.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final
from unittest.mock import patch

import pytest

from dmcopy.errors import CowCannotGrow
from dmcopy.jobs.host import Host
from dmcopy.jobs.overview import overview, rescue
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack import begin, grow
from dmcopy.stack.cow import CowFileOnHost, CowPlan, CowSpec, cow_from_json
from dmcopy.stack.cow_plan import plan_cow
from dmcopy.stack.discover import discover
from dmcopy.units import KIB, MIB, Bytes, Sectors, to_bytes, to_sectors
from tests.lab import stamp
from tests.lab.harness import (
    NoDeadMan,
    differing,
    host_in,
    pattern,
    read_device,
    sectors_of,
    table_text,
    write_device,
)
from tests.lab.scene import Scene, scene
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

JOB: Final = "growth_tmeta-1"  # LVM does not take this name for an LV
ORIGIN: Final = 12  # MiB
START: Final = Bytes(2 * MIB)
STEP: Final = Bytes(2 * MIB)
LOW: Final = Bytes(MIB + 256 * KIB)  # grows when less than this is free
SLOW_SECONDS: Final = 60.0


@pytest.fixture
def no_dead_man() -> Iterator[None]:
    """Do without him: he takes longer to start than all of a swap."""
    with patch("dmcopy.stack.hold.DeadMan", NoDeadMan):
        yield


quick = pytest.mark.usefixtures("no_dead_man")


@pytest.fixture
def place() -> Iterator[Scene]:
    with scene("growth") as made:
        yield made


class Job:
    """A begun job with a COW device that can grow."""

    def __init__(self, place: Scene, spec: CowSpec, *, chunk: int = 16) -> None:
        self.host: Host = host_in(str(place.folder))
        assert self.host.dm is not None
        self.dm: Dm = self.host.dm
        self.lvm = Lvm(self.host.run)
        self.chunk = to_sectors(Bytes(chunk * KIB))
        self.origin = place.origin(ORIGIN)
        self.pattern = pattern(sectors_of(self.origin) * 512)
        self.table = table_text(self.origin)
        write_device(self.origin, self.pattern)
        source = discover(self.origin, self.dm, self.host.sysfs, want_splice=True)
        self.plan = plan_cow(
            spec, job=JOB, source=source.devno, length=source.length, chunk=self.chunk,
            directory=self.host.places.cow_files, sysfs=self.host.sysfs, lvm=self.lvm,
        )  # fmt: skip
        self.spliced = begin.splice(
            self.dm, self.host.sysfs, job=JOB, source=source, cow=self.plan, chunk=self.chunk,
            hold_limit=10.0, lvm=self.lvm,
        )  # fmt: skip

    @contextmanager
    def begun(self) -> Iterator[grow.Growing]:
        self.spliced.plan.run(lambda what: None)
        try:
            yield self.grower(self.plan)
        finally:
            self.spliced.plan.undo()
        assert table_text(self.origin) == self.table

    def grower(self, plan: CowPlan) -> grow.Growing:
        return grow.grower(
            plan, job=JOB, dm=self.dm, sysfs=self.host.sysfs, lvm=self.lvm, chunk=self.chunk,
            hold_limit=10.0,
        )  # fmt: skip

    @property
    def status(self) -> str:
        return self.dm.status(self.spliced.snapshot.name, flush=False)[0].text

    def used(self) -> tuple[Bytes, Bytes]:
        """Give how much of the COW device is used, and how much there is."""
        used, total = self.status.split()[0].split("/")
        return to_bytes(Sectors(int(used))), to_bytes(Sectors(int(total)))

    def grow_until(self, grower: grow.Growing, enough: int, meanwhile: Callable[[], None]) -> None:
        """Grow whenever little is free, until *enough* bytes are used."""
        end = time.monotonic() + SLOW_SECONDS
        while True:
            used, total = self.used()
            if used >= enough:
                return
            assert time.monotonic() < end, f"the load is too slow: {used} of {total}"
            if total - used < LOW:
                size = grower.grow(Bytes(total + STEP))
                assert size > total
                assert self.used()[1] == size, "the snapshot knows at once"
                meanwhile()
            time.sleep(0.005)

    def assert_is_as_begun(self) -> None:
        image = read_device(f"/dev/mapper/{self.spliced.snapshot.name}")
        assert self.used(), "still valid after it was read"
        assert differing(image, self.pattern) == []


def slowest_write(log: Path) -> float:
    """Give the seconds that the load waited longest for a write."""
    writes = [write for path in log.glob("log.*") for write in stamp.read_log(path)[1]]
    return max(one.acknowledged - one.submitted for one in writes if one.acknowledged) / 1e9


def cow_fd(job: Job) -> int:
    return os.open(f"/dev/mapper/{job.spliced.cow.name}", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def grown_under_load(
    place: Scene,
    job: Job,
    *,
    pause: float = 0.005,
    times: int = 3,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[grow.Growing]:
    """Grow to *times* the first size, under a load that sees no error."""
    with job.begun() as grower, ExitStack() as stack:
        fd = cow_fd(job)  # as the worker's, which is opened before the first growth
        stack.callback(os.close, fd)
        assert grower.size == job.used()[1] == to_bytes(job.plan.length)
        with place.load(job.origin, pause=pause) as log:
            job.grow_until(grower, times * START, meanwhile)
        assert job.used()[1] == grower.size == os.lseek(fd, 0, os.SEEK_END) > times * START
        assert os.pread(fd, 4, 0) == b"SnAp"
        job.assert_is_as_begun()
        held = grower.holds
        print(f"{job.plan}: {len(held)} swaps, slowest {max(held) * 1e3:.2f} ms;", end=" ")
        print(f"slowest write of the load {slowest_write(log) * 1e3:.0f} ms")
        assert len(held) >= times
        assert statistics.median(held) < 0.05
        assert max(held) < 0.5
        yield grower


def assert_nothing_left(place: Scene, job: Job) -> None:
    place.assert_clean(job.origin, job.table)
    assert not list(place.folder.rglob("*cow*/*"))


@quick
@pytest.mark.parametrize("chunk", [4, 16])
def test_load_that_is_too_much_loses_the_point_in_time_without_growth(
    place: Scene, chunk: int
) -> None:
    job = Job(place, CowSpec(size=START), chunk=chunk)
    with job.begun() as grower, place.load(job.origin):
        assert grower.can_grow_to() == START
        with pytest.raises(CowCannotGrow, match="its limit of"):
            grower.grow(Bytes(2 * START))
        end = time.monotonic() + SLOW_SECONDS
        while job.status != "Invalid":
            assert time.monotonic() < end, job.status
            time.sleep(0.02)
    assert_nothing_left(place, job)


@quick
@pytest.mark.parametrize("chunk", [4, 16])
def test_file_that_sized_itself_grows(place: Scene, chunk: int) -> None:
    with ExitStack() as stack:
        for name, value in (("_WHOLE", MIB), ("_LEAST_START", START)):
            stack.enter_context(patch(f"dmcopy.stack.cow_plan.{name}", value))
        job = Job(place, CowSpec(), chunk=chunk)
    assert job.plan.how.endswith("(all that could be needed)")
    assert job.plan.most > ORIGIN * MIB
    with grown_under_load(place, job, pause=chunk / 3000):
        pass
    assert_nothing_left(place, job)


def test_named_file_grows_as_far_as_it_may_and_a_dead_man_watches(place: Scene) -> None:
    file = place.folder / "named"
    job = Job(place, CowSpec(file=str(file), size=START, most=Bytes(10 * MIB)))

    def look() -> None:
        assert file.stat().st_size == job.used()[1]
        assert file.stat().st_blocks * 512 >= file.stat().st_size, "allocated, not sparse"

    with grown_under_load(place, job, pause=0.02, times=2, meanwhile=look):
        assert file.stat().st_size == job.used()[1]
    assert not file.exists()
    assert_nothing_left(place, job)


@quick
def test_next_device_of_a_list_is_taken_when_the_last_is_full(place: Scene) -> None:
    disks = [place.stage.disk(mib) for mib in (2, 1, 1, 1, 1, 4)]
    job = Job(place, CowSpec(devices=tuple(disks)))
    rows: list[int] = []

    def look() -> None:
        rows.append(len(job.dm.table(job.spliced.cow.name)))
        for disk in disks:  # also those whose turn has not come
            with pytest.raises(OSError, match="busy"):
                os.close(os.open(disk, os.O_RDONLY | os.O_EXCL))

    with grown_under_load(place, job, meanwhile=look):
        pass
    assert rows == [3, 5, 6]
    assert_nothing_left(place, job)


@contextmanager
def volume_group(place: Scene) -> Iterator[str]:
    """Make a volume group of 8 MiB in extents of 1 MiB."""
    disks = [place.stage.disk(5) for _ in range(2)]
    sh("vgcreate", "--yes", "--quiet", "--physicalextentsize", "1m", "dmct-growth", *disks)
    try:
        yield "dmct-growth"
    finally:
        sh("vgremove", "--yes", "--force", "--quiet", "dmct-growth")


@quick
def test_logical_volume_grows_until_the_volume_group_is_full(place: Scene) -> None:
    with volume_group(place) as vg:
        job = Job(place, CowSpec(vg=vg, size=START, most=Bytes(64 * MIB)))
        with grown_under_load(place, job, pause=0.03, times=2) as grower:
            assert grower.grow(Bytes(12 * MIB)) == 8 * MIB, "what there is, is used"
            with pytest.raises(CowCannotGrow, match=f"0 B are free .* vgextend {vg}"):
                grower.grow(Bytes(12 * MIB))
            assert job.used()[1] == 8 * MIB
        assert sh("lvs", "--noheadings", vg) == ""
    assert_nothing_left(place, job)


@quick
def test_full_file_system_of_the_host_is_told_and_the_old_size_works(place: Scene) -> None:
    mount = place.stage.filesystem(place.stage.disk(10))
    spec = CowSpec(file=f"{mount}/cow", size=START, most=Bytes(64 * MIB))
    job = Job(place, spec)
    with job.begun() as grower:
        free = os.statvfs(mount).f_bfree
        with pytest.raises(CowCannotGrow, match=f"No space left .* are free in {mount}"):
            grower.grow(Bytes(12 * MIB))
        assert os.path.getsize(f"{mount}/cow") == START == grower.size
        assert os.statvfs(mount).f_bfree >= free - 4, "what was allocated in vain is given back"
        write_device(job.origin, bytes(MIB))
        assert MIB < job.used()[0] < job.used()[1] == START
        assert grower.grow(Bytes(3 * MIB)) == 3 * MIB
        write_device(job.origin, bytes(2 * MIB))
        assert START < job.used()[0] < job.used()[1] == 3 * MIB
        job.assert_is_as_begun()
    assert os.listdir(mount) == ["lost+found"]


POINTS: Final = ("allocated", "loaded", "swapped")


def die_at(point: str, grower: grow.Growing, job: Job) -> None:
    """Have this process killed at a point of the next growth."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def dying(inner: Callable[..., object]) -> Callable[..., object]:
        return lambda *args, **kwargs: die(inner(*args, **kwargs))

    match point:
        case "allocated":
            patch("dmcopy.stack.grow.set_capacity", die).start()
        case "loaded":
            patch.object(job.dm, "load", dying(job.dm.load)).start()
    grower.grow(Bytes(2 * START))
    die()


def killed_in_growth(job: Job, point: str) -> None:
    """Begin and grow in a process of its own, which is killed."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            job.spliced.plan.run(lambda what: None)
            die_at(point, job.grower(job.plan), job)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def go_on(job: Job, point: str) -> None:
    """Prove that what is there is valid, and that another process can make it grow on."""
    write_device(job.origin, bytes(MIB))
    assert job.used()[1] == (2 * START if point == "swapped" else START)
    again = job.grower(cow_from_json(json.loads(json.dumps(job.plan.as_json()))))
    assert again.grow(Bytes(3 * START)) == 3 * START == job.used()[1]
    write_device(job.origin, bytes(5 * MIB))
    job.assert_is_as_begun()


def rescue_job(job: Job) -> None:
    (view,) = [view for view in overview(job.host) if view.job == JOB]
    assert view.is_dead
    rescued = rescue(view, job.host)
    assert rescued.left == ()
    assert table_text(job.origin) == job.table


@quick
@pytest.mark.parametrize("point", POINTS)
def test_growth_of_a_file_that_was_killed_can_go_on_and_is_rescued(
    place: Scene, point: str
) -> None:
    job = Job(place, CowSpec(size=START, most=Bytes(12 * MIB)))
    killed_in_growth(job, point)
    assert isinstance(job.plan, CowFileOnHost)
    assert job.plan.path.stat().st_size == 2 * START
    go_on(job, point)
    rescue_job(job)
    assert_nothing_left(place, job)


@quick
def test_growth_of_an_lv_that_was_killed_can_go_on_and_rescue_lets_held_writes_go(
    place: Scene,
) -> None:
    with volume_group(place) as vg:
        job = Job(place, CowSpec(vg=vg, size=START, most=Bytes(12 * MIB)))
        killed_in_growth(job, "loaded")
        go_on(job, "loaded")
        (lv,) = (info.name for info in job.dm.devices() if info.uuid.startswith("LVM-"))
        for name in (job.spliced.cow.name, lv):
            sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
        argv = ["dd", "if=/dev/zero", f"of={job.origin}", "bs=4k", "count=1", "seek=2k"]
        write = subprocess.Popen([*argv, "oflag=direct", "status=none"])
        time.sleep(0.3)
        assert write.poll() is None, "it waits for the COW device"
        rescue_job(job)
        assert write.wait(timeout=10) == 0
        assert sh("lvs", "--noheadings", vg) == ""
    assert_nothing_left(place, job)


def test_copy_uses_an_lv_of_its_own_and_says_how_large(place: Scene) -> None:
    origin = place.origin(4)
    table = table_text(origin)
    with volume_group(place) as vg:
        ran = place.fork(
            "copy", origin, f"image:{place.folder}/copy.img", "--name", "with-lv", "--json",
            "--cow", f"vg:{vg}",
        )  # fmt: skip
        assert ran.status == 0, ran
        planned = ran.event("planned")
        assert planned["cow"] == (
            f"logical volume {vg}/dmcopy_with-lv, 4.0 MiB "
            f"(half of what is free in volume group {vg})"
        )
        assert [line for line in planned["steps"] if line.startswith("lvcreate")]
        assert sh("lvs", "--noheadings", vg) == ""
    place.assert_clean(origin, table)


def test_device_named_twice_is_refused(place: Scene) -> None:
    origin, disk = place.origin(4), place.stage.disk(4)
    ran = place.fork("copy", origin, f"image:{place.folder}/i", "--cow", f"{disk},{disk}")
    assert ran.status == 3
    assert f"COW device: {disk} is in use by this job already" in ran.said
