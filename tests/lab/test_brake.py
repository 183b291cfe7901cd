"""The brake: writes wait, whatever is released is saved, and nothing waits for longer than it may.

Chunks are 16 KiB; the device has 16 segments of 512 KiB.  What a write costs is read from the
kernel's own snapshot: the exceptions that it counts, and what it says was there at begin time.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.core.targets.delay import Delay
from dmcopy.engine.validate import Layer, SnapshotValidator
from dmcopy.errors import PointInTimeLost, Refused
from dmcopy.kernel.command import Commander
from dmcopy.kernel.cookie import Cookies
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack import brake as brake_module
from dmcopy.stack import hold as hold_module
from dmcopy.stack.begin import Spliced, splice
from dmcopy.stack.brake import Brake
from dmcopy.stack.cow import CowDevice, CowDevices
from dmcopy.stack.deadman import DeadMan
from dmcopy.stack.discover import discover
from dmcopy.stack.gate import MOST_LINES, LiveTables, braking
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.recover import find_remains, take_apart
from dmcopy.units import Bytes, Sectors, to_sectors
from tests.lab.harness import SLOW, NoDeadMan, devno, pattern, read_device, sectors_of, write_device
from tests.lab.scene import SLACK, Scene, reload, scene, timed_write, until
from tests.lab.stage import sh
from tests.lab.stamp import read_log
from tests.lab.test_deadman import Say, holding

pytestmark = [pytest.mark.lab]

proof = pytest.mark.proof

PIECE = 512 << 10  # bytes
PIECES = 16
CHUNK = to_sectors(Bytes(16 << 10))
SEGMENT = to_sectors(Bytes(PIECE))
# For what is to be seen while a write is held: milliseconds.
LONG, LONGEST = (6000, 16000) if SLOW else (1500, 4000)
LIMIT = LONGEST / 1000  # seconds; the longest that anything may be held
QUICK = LONG / 5000  # seconds; for what is not held
# dm-delay counts jiffies (drivers/md/dm-delay.c:delay_bio): the first of them may be almost over
JIFFY = 0.011  # seconds; a little more than one with 100 Hz
JOB = "brk"


def pieces(start: int, length: int = 1) -> Extent:
    return Extent(Sectors(start * SEGMENT), Sectors(length * SEGMENT))


def dm_in(at: Scene) -> DmIoctl:
    """Give a device-mapper that waits for udev where it runs."""
    return DmIoctl(cookies=Cookies(at.folder / "cookies"))


def path_of(dm: DmIoctl, role: Role) -> str:
    info = dm.info(device_name(JOB, role))
    assert info is not None
    return Sysfs().node(info.devno)


@dataclass
class Rig:
    """A spliced origin with a brake."""

    at: Scene
    origin: str
    plain: str  # its table before
    dm: DmIoctl
    spliced: Spliced
    brake: Brake
    witness: bytes
    told: list[LiveTables] = field(default_factory=list)

    def path(self, role: Role) -> str:
        return path_of(self.dm, role)

    def exceptions(self) -> int:
        """Count the chunks that were saved."""
        used, rest = sh("dmsetup", "status", device_name(JOB, Role.SNAP)).split()[3:5]
        assert "/" in used, f"the snapshot is {used}"
        return (int(used.split("/")[0]) - int(rest)) // CHUNK

    def snapshot(self, extent: Extent) -> bytes:
        return read_device(self.path(Role.SNAP))[extent.offset : extent.offset + extent.size]

    def assert_image(self, *retired: Extent) -> None:
        """The kernel's snapshot is that of begin time wherever nothing is retired."""
        now = read_device(self.path(Role.SNAP))
        skip = {
            at for extent in retired for at in range(extent.start // SEGMENT, extent.end // SEGMENT)
        }
        for at in range(PIECES):
            if at not in skip:
                part = slice(at * PIECE, (at + 1) * PIECE)
                assert now[part] == self.witness[part], f"piece {at} is not that of begin time"

    @contextmanager
    def writing(self, *offsets: int) -> Iterator[dict[int, float]]:
        """Write a block at each of *offsets*; gives the seconds of those that are done."""
        took: dict[int, float] = {}

        def write(offset: int) -> None:
            took[offset] = timed_write(self.origin, offset)

        threads = [threading.Thread(target=write, args=(offset,)) for offset in offsets]
        for thread in threads:
            thread.start()
        try:
            yield took
        finally:
            for thread in threads:
                thread.join()

    def held(self, writes: int) -> tuple[Extent, ...]:
        """Wait until so many writes are held; give where."""
        until(lambda: self.brake.held().writes == writes, f"{writes} writes are held", patience=5)
        return self.brake.held().extents


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("brake") as here:
        yield here


def spliced_on(dm: DmIoctl, origin: str, cow: str) -> Spliced:
    sysfs = Sysfs()
    made = splice(
        dm, sysfs, job=JOB, source=discover(origin, dm, sysfs, want_splice=True),
        cow=CowDevices((CowDevice(cow, devno(cow), Sectors(sectors_of(cow))),)), chunk=CHUNK,
        hold_limit=LIMIT, lvm=Lvm(Commander()),
    )  # fmt: skip
    made.plan.run(lambda what: None)
    return made


@pytest.fixture
def rig(at: Scene) -> Iterator[Rig]:
    with patch.object(hold_module, "DeadMan", NoDeadMan), rigged(at) as one:
        yield one


@contextmanager
def rigged(at: Scene) -> Iterator[Rig]:
    origin = at.origin(PIECES * PIECE >> 20)
    write_device(origin, pattern(PIECES * PIECE))
    plain = sh("dmsetup", "table", origin)
    dm = dm_in(at)
    spliced = spliced_on(dm, origin, at.stage.disk(16))
    told: list[LiveTables] = []
    brake = make_brake(dm, origin, told.append)
    try:
        witness = read_device(path_of(dm, Role.SNAP))
        yield Rig(at, origin, plain, dm, spliced, brake, witness, told)
        brake.off()
    finally:
        with suppress(Exception):  # the plan's undo must put it right all the same
            brake.off()
        spliced.plan.undo()
        for remains in find_remains(dm, Sysfs()).values():
            take_apart(dm, remains)
        dm.close()
    at.assert_clean(origin, plain)
    no_watcher()


def make_brake(dm: DmIoctl, origin: str, announce: Callable[[LiveTables], None]) -> Brake:
    return Brake(
        dm, job=JOB, origin=os.path.basename(origin), segment=SEGMENT, hold_limit=LIMIT,
        announce=announce,
    )  # fmt: skip


def watchers() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and b"dmcopy.stack.unbrake" in (
                entry / "cmdline"
            ).read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def no_watcher() -> None:
    until(lambda: not watchers(), "the watcher ended", patience=5 + SLACK)


def flush_seconds(path: str) -> float:
    fd = os.open(path, os.O_RDWR)
    try:
        start = time.monotonic()
        os.fsync(fd)
        return time.monotonic() - start
    finally:
        os.close(fd)


def read_seconds(path: str, offset: int) -> float:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page:
            start = time.monotonic()
            assert os.preadv(fd, [page], offset) == 4096
            return time.monotonic() - start
    finally:
        os.close(fd)


# what is held, and for how long


@proof
def test_write_waits_its_time_and_is_saved_while_reads_and_flushes_pass(rig: Rig) -> None:
    rig.brake.on(LONG)
    with rig.writing(5 * PIECE) as took:
        assert rig.held(1) == (pieces(5),)
        assert read_seconds(rig.origin, 5 * PIECE) < QUICK
        assert flush_seconds(rig.origin) < QUICK
        assert took == {}
        assert rig.exceptions() == 0
    assert LONG / 1000 - JIFFY <= took[5 * PIECE] < LONG / 1000 + SLACK
    assert rig.exceptions() == 1
    assert read_device(rig.origin)[5 * PIECE :][:4096] == bytes(4096)
    rig.assert_image()


def test_held_writes_are_counted_where_they_are_and_nowhere_else(rig: Rig) -> None:
    rig.brake.on(LONG)
    assert rig.brake.held() == brake_module.NOTHING_HELD
    with rig.writing(0, PIECE - 4096, 7 * PIECE, 16 * PIECE - 4096):
        assert rig.held(4) == (pieces(0), pieces(7), pieces(15))
    assert rig.brake.held() == brake_module.NOTHING_HELD


def test_gentle_brake_only_slows(rig: Rig) -> None:
    rig.brake.on(50)
    assert 0.05 - JIFFY <= timed_write(rig.origin, 0) < 0.05 + SLACK
    rig.brake.on(400)
    assert 0.4 - JIFFY <= timed_write(rig.origin, PIECE) < 0.4 + SLACK
    assert rig.exceptions() == 2
    with pytest.raises(ValueError, match="hold limit"):
        rig.brake.on(round(LIMIT * 1000) + 1)


# retiring


def test_retired_range_is_written_at_full_speed_and_costs_nothing(rig: Rig) -> None:
    rig.brake.on(LONG, [pieces(0, 4), pieces(8)])
    for offset in (0, 4 * PIECE - 4096, 8 * PIECE):
        assert timed_write(rig.origin, offset) < QUICK
    assert rig.exceptions() == 0
    rig.brake.off()
    assert " linear " in sh("dmsetup", "table", rig.origin)
    assert timed_write(rig.origin, 4096) < QUICK
    assert rig.exceptions() == 0
    timed_write(rig.origin, 5 * PIECE)
    assert rig.exceptions() == 1
    rig.assert_image(pieces(0, 4), pieces(8))


def test_fullest_table_keeps_flushes_quick(rig: Rig) -> None:
    retired = [pieces(at) for at in range(1, PIECES, 2)]
    rig.brake.on(LONG, retired)
    for role in (Role.BRAKE, Role.GATE):
        lines = sh("dmsetup", "table", device_name(JOB, role)).splitlines()
        assert MOST_LINES - 1 <= len(lines) <= MOST_LINES
    assert flush_seconds(rig.origin) < QUICK
    with rig.writing(14 * PIECE):
        rig.held(1)
        assert flush_seconds(rig.origin) < QUICK
    rig.assert_image(*retired)


def test_held_writes_go_when_all_their_ranges_are_retired(rig: Rig) -> None:
    rig.brake.on(LONG)
    with rig.writing(2 * PIECE, 9 * PIECE) as took:
        rig.held(2)
        assert rig.brake.advance([pieces(2), pieces(9)])
        until(lambda: len(took) == 2, "they went", patience=LONG / 3000)
    assert max(took.values()) < LONG / 1000
    assert rig.exceptions() == 0
    assert timed_write(rig.origin, 2 * PIECE) < QUICK


def test_write_that_would_cost_is_not_released_for_others_but_for_room(rig: Rig) -> None:
    rig.brake.on(LONG)
    with rig.writing(2 * PIECE, 9 * PIECE) as took:
        rig.held(2)
        assert not rig.brake.advance([pieces(2)])
        assert rig.brake.held().writes == 2
        assert took == {}
    assert rig.exceptions() == 1, "the retired one passed without, the other was saved"
    with rig.writing(10 * PIECE) as took:
        rig.held(1)
        assert not rig.brake.advance([pieces(2)], room=Sectors(SEGMENT - 1))
        assert rig.brake.advance([pieces(2)], room=SEGMENT)
        until(lambda: took, "it went", patience=LONG / 3000)
    assert rig.exceptions() == 2
    assert timed_write(rig.origin, 2 * PIECE) < QUICK
    rig.assert_image(pieces(2))


def test_snapshot_stays_right_for_what_is_not_retired_under_load(rig: Rig) -> None:
    with (
        patch.object(hold_module, "DeadMan", DeadMan),  # each swap as it is in earnest
        rig.at.load(rig.origin, pause=0.0, max_blocks=64) as log,
    ):
        time.sleep(0.3)
        rig.brake.on(30)
        rig.assert_image()
        rig.brake.on(300)
        time.sleep(0.5)  # some are held for all of it
        rig.assert_image()
        for done in range(4, PIECES, 4):
            rig.brake.advance([pieces(0, done)], room=Sectors(SEGMENT * 2))
            rig.assert_image(pieces(0, done))
        rig.brake.off()
        rig.assert_image(pieces(0, 12))
    assert max(hold.held for _, hold in rig.brake.holds) < LIMIT
    writes = [write for file in log.iterdir() for write in read_log(file)[1] if write.acknowledged]
    slowest = max(write.acknowledged - write.submitted for write in writes) / 1e9
    assert 0.3 - JIFFY <= slowest < 0.3 + SLACK


# released early


def wait_out(path: str) -> None:
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", path)
    sh("dmsetup", "resume", "--noudevsync", path)


@pytest.mark.parametrize("role", [Role.BRAKE, None])
def test_write_that_a_stranger_releases_is_saved(rig: Rig, role: Role | None) -> None:
    rig.brake.on(LONG)
    with rig.writing(3 * PIECE) as took:
        rig.held(1)
        wait_out(device_name(JOB, role) if role else rig.origin)
        until(lambda: took, "it went", patience=LONG / 3000)
    assert took[3 * PIECE] < LONG / 1000 + SLACK
    assert rig.exceptions() == 1
    rig.assert_image()
    assert timed_write(rig.origin, 4 * PIECE) >= LONG / 1000 - JIFFY, "the brake is on as before"


def test_delay_over_the_bare_source_broken_loses_what_is_released(rig: Rig) -> None:
    def bare(
        length: Sectors,
        source: str,
        gate: str,
        retired: list[Extent],
        *,
        milliseconds: int,
        only: Sequence[Extent] | None,
    ) -> Table:
        right = braking(length, source, gate, retired, milliseconds=milliseconds, only=only)
        return Table.parse(str(right).replace(f" {gate} ", f" {source} "))

    with patch.object(brake_module, "braking", bare):
        rig.brake.on(200)
        timed_write(rig.origin, 3 * PIECE)
        assert rig.exceptions() == 0
        with pytest.raises(AssertionError, match="piece 3 is not that of begin time"):
            rig.assert_image()


# who watches


def test_worker_knows_our_tables_from_a_strangers_on_every_layer(rig: Rig) -> None:
    control = DmIoctl()
    validator = SnapshotValidator(
        control.probe(uuid=device_uuid(JOB, Role.SNAP)),
        control.probe(devno=devno(rig.origin)),
        str(rig.spliced.origin_table()).encode(),
    )

    def allow(live: LiveTables) -> None:
        validator.allow(
            live.origin,
            [Layer(uuid, control.probe(uuid=uuid), said) for uuid, said in live.layers.items()],
        )

    lost: list[PointInTimeLost] = []
    stop = threading.Event()
    checks = [0]

    def check() -> None:
        while not stop.is_set():
            try:
                validator.check()
                checks[0] += 1
                time.sleep(0.001)  # there is one CPU
            except PointInTimeLost as exc:
                lost.append(exc)
                return

    brake = make_brake(rig.dm, rig.origin, allow)
    thread = threading.Thread(target=check)
    thread.start()
    try:
        for _ in range(2):
            brake.on(20)
            brake.advance([pieces(3)])
            brake.on(40)
            brake.advance([pieces(3, 2), pieces(7)])
            brake.off()
    finally:
        stop.set()
        thread.join()
    assert lost == []
    assert checks[0] > 100
    brake.on(20)
    for role in (Role.METER, Role.BRAKE, Role.GATE):
        name = device_name(JOB, role)
        ours = sh("dmsetup", "table", name)
        validator.check()
        reload(name, f"0 {PIECES * SEGMENT} linear {devno(rig.path(Role.SOURCE))} 0")
        with pytest.raises(PointInTimeLost, match=f"{role}'s table was replaced"):
            validator.check()
        reload(name, ours)
    brake.off()
    validator.check()
    control.close()


# who dies


def hold_until_killed(origin: str, milliseconds: int) -> Callable[[Say], object]:
    def body(say: Say) -> None:
        with patch.object(hold_module, "DeadMan", DeadMan):
            make_brake(DmIoctl(), origin, lambda _: None).on(milliseconds)
        say("on")
        time.sleep(60)

    return body


@proof
def test_killed_control_takes_the_brake_with_it_and_what_was_held_is_saved(rig: Rig) -> None:
    with (
        rig.at.load(rig.origin, pause=0.05, max_blocks=1),
        holding(hold_until_killed(rig.origin, LONGEST)) as holder,
    ):
        holder.heard("on")
        assert len(watchers()) == 1
        with rig.writing(15 * PIECE) as took:
            until(lambda: held_by_kernel() >= 1, "a write is held")
            holder.kill(signal.SIGKILL)
            until(lambda: took, "it went", patience=LONGEST / 4000 + SLACK / 2)
        no_watcher()
        assert took[15 * PIECE] < LONGEST / 2000 + SLACK
        assert timed_write(rig.origin, 14 * PIECE) < QUICK, "nothing waits any more"
        rig.assert_image()
        with pytest.raises(Refused, match=f"copied already, by job {JOB}"):
            discover(rig.origin, rig.dm, Sysfs())
        (remains,) = find_remains(rig.dm, Sysfs()).values()
        assert [(origin.name, origin.live) for origin in remains.origins] == [
            (os.path.basename(rig.origin), True)
        ]
        done, left, _ = take_apart(rig.dm, remains)
        assert left == ()
        assert f"gave {os.path.basename(rig.origin)} its table back" in done
        assert sh("dmsetup", "table", rig.origin) == rig.plain


def held_by_kernel() -> int:
    return sum(
        int(line.split()[4])
        for line in sh("dmsetup", "status", device_name(JOB, Role.BRAKE)).splitlines()
        if f" {Delay.KIND} " in line
    )


# back to what it was


def gate_half_made(brake: Brake, origin: str, plain: str) -> None:
    sh("dmsetup", "create", device_name(JOB, Role.GATE), "--notable",
       "--uuid", device_uuid(JOB, Role.GATE))  # fmt: skip


def brake_loaded_over_ours(brake: Brake, origin: str, plain: str) -> None:
    ours = sh("dmsetup", "table", origin)
    brake.on(LONGEST)
    braked = sh("dmsetup", "table", origin)
    reload(origin, ours)
    sh("dmsetup", "load", origin, "--table", braked)


def brake_loaded_over_plain(brake: Brake, origin: str, plain: str) -> None:
    brake.on(LONGEST)
    braked = sh("dmsetup", "table", origin)
    reload(origin, plain)
    sh("dmsetup", "load", origin, "--table", braked)


def braked(brake: Brake, origin: str, plain: str) -> None:
    brake.on(LONGEST, [pieces(0)])


def all_retired(brake: Brake, origin: str, plain: str) -> None:
    brake.on(LONGEST, [pieces(0, PIECES)])
    brake.off()


def gate_suspended(brake: Brake, origin: str, plain: str) -> None:
    brake.on(LONGEST, [pieces(0)])
    sh("dmsetup", "suspend", "--noflush", device_name(JOB, Role.GATE))


def brake_suspended(brake: Brake, origin: str, plain: str) -> None:
    brake.on(LONGEST)
    sh("dmsetup", "suspend", "--noflush", device_name(JOB, Role.BRAKE))


def origin_suspended(brake: Brake, origin: str, plain: str) -> None:
    brake.on(LONGEST)
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", origin)


STATES = [
    gate_half_made, brake_loaded_over_ours, brake_loaded_over_plain, braked, all_retired,
    gate_suspended, brake_suspended, origin_suspended,
]  # fmt: skip


@pytest.mark.parametrize("how", ["rescue", "undo"])
def test_origin_gets_its_table_back_from_any_state(at: Scene, how: str) -> None:
    origin, cow = at.origin(PIECES * PIECE >> 20), at.stage.disk(16)
    plain = sh("dmsetup", "table", origin)
    dm = dm_in(at)
    with patch.object(hold_module, "DeadMan", NoDeadMan):
        for state in STATES:
            spliced = spliced_on(dm, origin, cow)
            brake = make_brake(dm, origin, lambda _: None)
            state(brake, origin, plain)
            writing = threading.Thread(target=timed_write, args=(origin, 5 * PIECE))
            writing.start()
            time.sleep(0.1)
            start = time.monotonic()
            if how == "rescue":
                done, left, _ = take_apart(dm, find_remains(dm, Sysfs())[JOB])
                assert left == (), state.__name__
                assert done
            else:
                spliced.plan.undo()
            assert time.monotonic() - start < LONGEST / 2000, "held writes were waited for"
            writing.join(timeout=0.5)
            assert not writing.is_alive(), state.__name__
            brake.off()  # control may notice later; there is nothing to do
            assert sh("dmsetup", "table", origin) == plain, state.__name__
            assert find_remains(dm, Sysfs()) == {}, state.__name__
    dm.close()
    at.assert_clean(origin, plain)
    no_watcher()
