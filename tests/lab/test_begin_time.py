"""Begin time, two hundred times: each copy is one instant, and the one that was said.

Every round fixes a begin time under a load that goes on, copies, and is compared with the
kernel's snapshot.  With the self-proving load it is proved besides that no block is of a write
submitted after the hold, none lacks a write acknowledged before begin time, and none is torn.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from dmcopy.core.events import Begun, Event
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import prepare
from dmcopy.jobs.runner import CopyJob
from dmcopy.jobs.spec import CopySpec
from dmcopy.stack.cow import CowSpec
from dmcopy.units import KIB, MIB, Bytes
from tests.lab import harness, stamp
from tests.lab.harness import SLOW, TALLY, Begin, Rig
from tests.lab.stage import Stage, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

proof = pytest.mark.proof

LENGTH = 4 * MIB + 12 * KIB  # no multiple of most chunks
COW = 8
ROUNDS = 3 if SLOW else 20
MOUNTED_ROUNDS = 2 if SLOW else 10
JOBS = 8
WANTED = 200
FILE = 2 * MIB  # on the file system


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("dmcb")
    try:
        yield made
    finally:
        made.close()


def origin(stage: Stage) -> str:
    """Make a device over a loop device: its writes take their time, and are in flight."""
    disk = stage.disk(8)
    return stage.linear(disk, LENGTH // 512)


def assert_stamps(image: Path, log: Path, seed: int, t0: int, t1: int) -> None:
    verdict = stamp.check(str(image), log, seed, t0=t0, t1=t1)
    assert verdict.wrong == []
    assert verdict.writes > 0


def rounds(is_enough: Callable[[], object]) -> Iterator[int]:
    """Give ROUNDS numbers, and more until it is enough: a quick copy may be missed by the load."""
    for number in range(10 * ROUNDS):
        if number >= ROUNDS and is_enough():
            return
        yield number


SEGMENTS = {4: 256 * KIB, 16: MIB, 64: 2 * MIB, 256: 16 * MIB}


@pytest.mark.parametrize("chunk", [pytest.param(4, marks=proof), 64])
def test_begin_time_under_stamps_is_one_instant(stage: Stage, chunk: int) -> None:
    rig = Rig(stage, origin(stage), stage.disk(COW))
    log = Path(stage.folder) / "log"
    stamp.fill(rig.origin, seed=chunk, processes=2)
    from_cow: list[int] = []
    with harness.stamping(rig.origin, log, seed=chunk):
        for number in rounds(lambda: any(from_cow)):
            done = rig.round(chunk=chunk * KIB, segment=SEGMENTS[chunk], dead_man=number == 0)
            assert done.wrong == []
            assert_stamps(done.image, log, chunk, done.point.t0, done.point.t1)
            from_cow.append(done.counts.bytes_cow)
            TALLY.add((done.point.t1 - done.point.t0) / 1e9)
    assert any(from_cow), "the load never reached the copy: nothing was proved"


@pytest.mark.parametrize("chunk", [4, 64])
def test_begin_time_under_fio_is_the_kernels_image(stage: Stage, chunk: int) -> None:
    rig = Rig(stage, origin(stage), stage.disk(COW))
    harness.write_device(rig.origin, harness.pattern(LENGTH))
    from_cow: list[int] = []
    with harness.fio(rig.origin, rig.origin):
        for number in rounds(lambda: any(from_cow)):
            done = rig.round(chunk=chunk * KIB, segment=SEGMENTS[chunk], dead_man=number == 0)
            assert done.wrong == []
            from_cow.append(done.counts.bytes_cow)
            TALLY.add((done.point.t1 - done.point.t0) / 1e9)
    assert any(from_cow), "the load never reached the copy: nothing was proved"


@pytest.mark.parametrize(
    ("load", "chunk"),
    [("stamp", 4), ("fio", 256)],
)
def test_begin_time_under_a_mounted_file_system_is_one_instant(
    stage: Stage, load: str, chunk: int
) -> None:
    """The load writes to a file; the copied file system is clean, and holds it as of then."""
    path = origin(stage)
    sh("mkfs.ext4", "-q", "-b", "4096", path)
    mount = stage.mount(path)
    file = Path(mount) / "file"
    with open(file, "wb") as new:
        new.truncate(FILE)
    stamp.fill(str(file), seed=7, processes=2)
    rig = Rig(stage, path, stage.disk(COW))
    log = Path(stage.folder) / "log"
    with ExitStack() as stack:
        if load == "fio":
            stack.enter_context(harness.fio(str(file), path, size=str(FILE)))
        else:
            stack.enter_context(harness.stamping(str(file), log, seed=7))
        for _ in range(MOUNTED_ROUNDS):
            done = rig.round(chunk=chunk * KIB, segment=SEGMENTS[chunk])
            assert done.wrong == []
            sh("e2fsck", "-fn", str(done.image))
            if load == "stamp":
                with harness.mounted(stage, str(done.image), "ro,noload,loop") as copy:
                    assert_stamps(copy / "file", log, 7, done.point.t0, done.point.t1)
            TALLY.add((done.point.t1 - done.point.t0) / 1e9)


def test_begin_time_of_whole_jobs_is_one_instant(stage: Stage) -> None:
    """Worker, journal, dead man and all; the witness is read when the job says ``begun``."""
    path = origin(stage)
    host = harness.host_in(stage.folder)
    table = harness.table_text(path)
    log = Path(stage.folder) / "log"
    image = Path(stage.folder) / "image"
    stamp.fill(path, seed=9, processes=2)
    with harness.stamping(path, log, seed=9), Journal(host.places.journal) as journal:
        for number in range(JOBS):
            image.unlink(missing_ok=True)
            spec = CopySpec(
                name=f"job{number}",
                source=path,
                destination=f"image:{image}",
                cow=CowSpec(),
                chunk=Bytes((4 << number % 4) * KIB),
                segment=Bytes((1 << number % 3) * MIB),
                digest=("sha256", "none")[number % 2],
            )
            seen: list[Begun] = []
            witness: list[bytes] = []

            def observe(event: Event, seen: list[Begun], witness: list[bytes]) -> None:
                if isinstance(event, Begun):
                    assert event.snapshot is not None
                    seen.append(event)
                    witness.append(harness.read_device(event.snapshot, LENGTH))

            observer = functools.partial(observe, seen=seen, witness=witness)
            ended = CopyJob(prepare(spec, host), host, journal, observer).run()
            assert ended.error is None
            assert harness.table_text(path) == table
            assert harness.differing(image.read_bytes(), witness[0]) == []
            t0 = harness.nanoseconds(seen[0].begin_time)
            held = seen[0].hold_seconds[0]
            assert_stamps(image, log, 9, t0, t0 + round(held * 1e9))
            TALLY.add(held)


@pytest.mark.parametrize(
    ("begin", "chunk"),
    [
        # The origin's writes are not split at the chunk size: one exception for many chunks.
        (functools.partial(harness.begin_broken, early=False, gap=0.0), 4),
        (functools.partial(harness.begin_broken, early=False, gap=0.0), 16),
        # Writes between the swap and the snapshot's resume are not saved.
        (functools.partial(harness.begin_broken, early=True, gap=0.1), 4),
        pytest.param(functools.partial(harness.begin_broken, early=True, gap=0.1), 64, marks=proof),
    ],
    ids=["created-after-4k", "created-after-16k", "active-after-4k", "active-after-64k"],
)
def test_begin_time_broken_on_purpose_is_seen(stage: Stage, begin: Begin, chunk: int) -> None:
    """The kernel's snapshot is as wrong as the copy here: only the stamps can tell."""
    rig = Rig(stage, origin(stage), stage.disk(COW))
    log = Path(stage.folder) / "log"
    stamp.fill(rig.origin, seed=5, processes=2)
    with harness.stamping(rig.origin, log, seed=5):
        for _ in range(5):
            done = rig.round(
                chunk=chunk * KIB, segment=MIB, begin=begin, meanwhile=lambda: time.sleep(0.3)
            )
            point = done.point
            verdict = stamp.check(str(done.image), log, 5, t0=point.t0, t1=point.t1)
            if not verdict.is_good:
                return
    pytest.fail("a begin time that was made wrong on purpose was found right five times")


def test_right_begin_time_is_right_where_the_broken_ones_are_seen(stage: Stage) -> None:
    rig = Rig(stage, origin(stage), stage.disk(COW))
    log = Path(stage.folder) / "log"
    stamp.fill(rig.origin, seed=5, processes=2)
    with harness.stamping(rig.origin, log, seed=5):
        for chunk in (4, 16, 64):
            done = rig.round(chunk=chunk * KIB, segment=MIB, meanwhile=lambda: time.sleep(0.3))
            assert_stamps(done.image, log, 5, done.point.t0, done.point.t1)


def test_two_hundred_begin_times_were_checked(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked of a session that ran all of this file; a part of it proves what it proves."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    with capsys.disabled():
        print(f"\n{TALLY}")
    whole = 4 + 4 + 4 + 1 + 4 + 1 + 1
    assert len(here) <= whole, "count the new tests too"
    if len(here) == whole and not SLOW:
        assert len(TALLY.held) >= WANTED
    with suppress(ValueError):
        assert max(TALLY.held) < 2.0
