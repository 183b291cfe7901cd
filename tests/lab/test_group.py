"""A group has one begin time: no copy shows a write without those that came before it elsewhere.

The application (`alternate`) writes to the volumes in turn, each write when the last is durable,
so that the images of one instant are told from those of two.  And all or nothing: what goes wrong
with one volume leaves all of them as they were.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from dmcopy.cli.common import Context
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.begin import Spliced, splice
from dmcopy.stack.cow import CowDevice, CowDevices
from dmcopy.stack.discover import discover
from dmcopy.stack.hold import Instant
from dmcopy.stack.together import Meet, Part, together
from dmcopy.units import Sectors
from tests.lab import harness, killer
from tests.lab.alternate import Writer, alternating, disorder
from tests.lab.harness import devno, host_in, read_device, sectors_of
from tests.lab.scene import Ran, Running, Scene, no_helpers, scene, until
from tests.lab.stage import Stage, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

proof = pytest.mark.proof

IN_UML = os.environ.get("LAB_GUEST") == "uml"
CHUNK = Sectors(32)
MIB = 2


@pytest.fixture
def play() -> Iterator[Scene]:
    with scene("group") as made:
        yield made


# one instant, without the processes of a job


class Trial:
    """Two volumes whose begin time is fixed again and again."""

    def __init__(self, stage: Stage) -> None:
        self.host = host_in(stage.folder)
        self.job = stage.name
        self.origins = [stage.linear(stage.disk(MIB)) for _ in range(2)]
        self.cows = [stage.disk(MIB) for _ in range(2)]

    def spliced(self, number: int, meet: Meet | None) -> Spliced:
        assert self.host.dm is not None
        origin, cow = self.origins[number], self.cows[number]
        source = discover(origin, self.host.dm, self.host.sysfs, want_splice=True)
        return splice(
            self.host.dm,
            self.host.sysfs,
            job=f"{self.job}.{number}",
            source=source,
            cow=CowDevices((CowDevice(cow, devno(cow), Sectors(sectors_of(cow))),)),
            chunk=CHUNK,
            hold_limit=10.0,
            lvm=Lvm(self.host.run),
            meet=meet,
        )

    def images(self, spliced: list[Spliced]) -> list[bytes]:
        """Read the kernel's own view of each."""
        return [read_device(self.host.sysfs.node(one.snapshot.devno())) for one in spliced]

    def at_one_instant(self) -> list[bytes]:
        """The first meets the second, which makes itself ready meanwhile."""
        assert self.host.dm is not None
        dm = self.host.dm
        first: list[Part] = []
        instants: list[Instant] = []

        def meet_second(part: Part | None) -> Instant:
            assert part is not None
            first.append(part)
            second.plan.run(lambda _: None)
            return instants[0]

        def meet_first(part: Part | None) -> Instant:
            assert part is not None
            instants.extend(together(dm, [*first, part], limit=10.0))
            return instants[1]

        second = self.spliced(1, meet_first)
        one = self.spliced(0, meet_second)
        with ExitStack() as stack:
            stack.callback(second.plan.undo)
            stack.callback(one.plan.undo)
            one.plan.run(lambda _: None)
            assert instants[0].begin_ns == instants[1].begin_ns
            for instant in instants:
                assert instant.alone is not None
                assert 0 < instant.alone <= instant.held
            return self.images([one, second])

    def one_after_the_other(self, between: Callable[[], None]) -> list[bytes]:
        made = [self.spliced(number, None) for number in range(2)]
        with ExitStack() as stack:
            for one in made:
                stack.callback(one.plan.undo)
                one.plan.run(lambda _: None)
                between()
            return self.images(made)


@proof
def test_one_instant_of_two_volumes_shows_no_write_without_the_one_before(play: Scene) -> None:
    trial = Trial(play.stage)
    with alternating(play.folder, trial.origins) as writer, ExitStack() as stack:
        stack.enter_context(patch("dmcopy.stack.hold.DeadMan", harness.NoDeadMan))
        stack.enter_context(patch("dmcopy.stack.together.DeadMan", harness.NoDeadMan))
        for _ in range(20 if IN_UML else 5):
            assert disorder(trial.at_one_instant()) == []
            writer.goes_on(1)


def test_broken_begin_of_one_volume_after_the_other_is_seen(play: Scene) -> None:
    trial = Trial(play.stage)
    with alternating(play.folder, trial.origins) as writer:
        assert disorder(trial.one_after_the_other(writer.goes_on)) != []


# the whole job


class Volumes:
    """Some small dm volumes, and where each is copied to."""

    def __init__(self, play: Scene, count: int = 2, mib: int = MIB) -> None:
        self.play = play
        self.origins = [play.origin(mib) for _ in range(count)]
        self.targets = [play.stage.disk(mib) for _ in range(count)]
        self.tables = [sh("dmsetup", "table", origin) for origin in self.origins]

    @property
    def pairs(self) -> list[str]:
        pairs = zip(self.origins, self.targets, strict=True)
        return [word for pair in pairs for word in ("--pair", *pair)]

    def copy(self, *more: str) -> list[str]:
        return ["copy", "--name", "g", *self.pairs, "--chunk", "16k", "--json", *more]

    def images(self) -> list[bytes]:
        return [read_device(target) for target in self.targets]

    def assert_copied(self, ran: Ran) -> None:
        """The images are of one instant, and all that was made is gone."""
        assert ran.status == 0, ran
        assert disorder(self.images()) == []
        self.assert_back()

    def assert_back(self) -> None:
        for origin, table in zip(self.origins, self.tables, strict=True):
            self.play.assert_back(origin, table)
        until(lambda: not members(), "the members ended")

    def running(self, *more: str) -> Running:
        """Begin a copy that takes long; gives it when it copies."""
        running = self.play.start(*self.copy("--rate", "256k", "--segment", "64k", *more))
        group_event(running, "begun")
        return running


def members() -> dict[str, int]:
    """Give the pid of each member that lives, by the number at the end of its name."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if b"dmcopy.jobs.member\0" in (entry / "cmdline").read_bytes():
                found[entry.name] = int(entry.name)
    return found


def group_event(running: Running, name: str) -> dict[str, object]:
    while "group" in (event := running.wait_for(name)):
        pass
    return event


def views(play: Scene) -> dict[str, dict[str, object]]:
    ran = play.fork("list", "--json")
    assert ran.status == 0, ran
    return {view["job"]: view for view in map(json.loads, ran.stdout.splitlines())}


@pytest.mark.parametrize("gate", ["none", "segment"])
def test_copies_of_a_group_are_of_one_instant(play: Scene, gate: str) -> None:
    count = 2
    volumes = Volumes(play, count)
    with alternating(play.folder, volumes.origins) as writer:
        ran = play.fork(*volumes.copy("--verify", "--gate", gate))
        volumes.assert_copied(ran)
        writer.goes_on()
    begun = ran.of_kind("begun")
    assert [event.get("group") for event in begun] == ["g"] * count + [None]
    assert len({event["begin_time"] for event in begun}) == 1
    ended = ran.event("ended")
    assert ended["job"] == "g"
    assert ended["verified"]
    assert set(ended["holds"]) == set(volumes.origins)
    assert all(0 < held <= ended["hold_seconds"][0] for held in ended["holds"].values())
    assert [one["state"] for one in ended["members"]] == ["ended"] * count
    total = [event["bytes_done"] for event in ran.of_kind("progress") if "group" not in event]
    assert total[-1] == count * MIB << 20
    listed = views(play)
    assert listed["g"]["members"] == [f"g.{number + 1}" for number in range(count)]
    assert {view["state"] for view in listed.values()} == {"ended"}
    assert play.fork("wait", "g").status == 0


def test_idle_volume_is_claimed_before_the_instant_of_the_others(play: Scene) -> None:
    volumes = Volumes(play, 1)
    idle, target = play.stage.disk(MIB), play.stage.disk(MIB)
    harness.write_device(idle, harness.pattern(MIB << 20))
    with alternating(play.folder, volumes.origins):
        ran = play.fork(*volumes.copy("--pair", idle, target))
        volumes.assert_copied(ran)
    assert read_device(target) == harness.pattern(MIB << 20)
    assert set(ran.event("ended")["holds"]) == set(volumes.origins)
    assert len({event["begin_time"] for event in ran.of_kind("begun")}) == 1


def test_mounted_volumes_are_frozen_and_their_copies_clean(play: Scene) -> None:
    """And a hook is run once, for both."""
    volumes = Volumes(play, 2, mib=16)
    hook, log = play.folder / "hook", play.folder / "hook.log"
    hook.write_text(f'#!/bin/sh\necho "$1" $DMCOPY_SOURCES >>{log}\n')
    hook.chmod(0o755)
    mounts = [play.stage.filesystem(origin) for origin in volumes.origins]
    files = [Path(mount) / "numbers" for mount in mounts]
    with ExitStack() as stack:
        for file in files:
            file.write_bytes(bytes(1 << 20))
        writer = stack.enter_context(alternating(play.folder, [str(file) for file in files]))
        ran = play.fork(*volumes.copy("--hook", str(hook)))
        assert ran.status == 0, ran
        writer.goes_on()
    volumes.assert_back()
    sources = " ".join(volumes.origins)
    assert log.read_text().splitlines() == [f"before {sources}", f"after {sources}"]
    assert [event["side"] for event in ran.of_kind("hook")] == ["before", "after"]
    copies = []
    for target in volumes.targets:
        sh("e2fsck", "-fn", target)
        with harness.mounted(play.stage, target, "ro,noload") as copy:
            copies.append((copy / "numbers").read_bytes())
    assert disorder(copies) == []


def volume_group(stage: Stage) -> str:
    vg = f"{stage.name}-vg"
    disk = stage.disk(48)
    sh("vgcreate", "--yes", "--quiet", "--physicalextentsize", "1m", vg, disk)
    stage.later(sh, "vgremove", "--force", "--yes", "--quiet", vg)
    return vg


def lv(stage: Stage, vg: str, name: str) -> str:
    sh("lvcreate", "--yes", "--quiet", "--wipesignatures", "n", "-L", f"{MIB}m", "-n", name, vg)
    return f"/dev/{vg}/{name}"


@pytest.mark.parametrize("other", ["lv"])
def test_logical_volumes_take_part_in_the_instant(play: Scene, other: str) -> None:
    """By LVM's own snapshots, whose stores are begun anew at the instant (KERNEL.md 13)."""
    stage = play.stage
    vg = volume_group(stage)
    array = stage.linear(stage.md(stage.disk(4), stage.disk(4))) if other == "md" else None
    origins = [lv(stage, vg, "data"), array or lv(stage, vg, "wal")]
    targets = [stage.disk(4) for _ in origins]
    before = sh("lvs", "--noheadings", "-a", "-o", "name,attr,size", vg), sh("dmsetup", "table")
    pairs = [w for pair in zip(origins, targets, strict=True) for w in ("--pair", *pair)]
    with alternating(play.folder, origins) as writer:
        ran = play.fork("copy", "--name", "g", *pairs, "--chunk", "16k", "--json")
        assert ran.status == 0, ran
        assert disorder([read_device(target) for target in targets]) == []
        writer.goes_on()
    assert set(ran.event("ended")["holds"]) == set(origins)
    after = sh("lvs", "--noheadings", "-a", "-o", "name,attr,size", vg), sh("dmsetup", "table")
    assert after == before
    sh("vgck", vg)


# all or nothing


def test_thin_volume_is_refused_for_its_snapshot_has_an_instant_of_its_own(play: Scene) -> None:
    stage = play.stage
    vg, other = volume_group(stage), stage.linear(stage.disk(MIB))
    targets = [stage.disk(MIB) for _ in range(2)]
    sh("lvcreate", "--yes", "--quiet", "--type", "thin-pool", "-L", "16m", "-n", "pool", vg)
    sh("lvcreate", "--yes", "--quiet", "-V", f"{MIB}m", "--thinpool", "pool", "-n", "thin", vg)
    thin = f"/dev/{vg}/thin"
    fds = [os.open(path, os.O_RDWR) for path in (other, thin)]
    try:
        before = play.picture(other, *targets), sh("lvs", "--noheadings", "-a", vg)
        ran = play.fork("copy", "--pair", other, targets[0], "--pair", thin, targets[1])
        assert (ran.status, ran.stdout) == (3, ""), ran
        assert f"{thin} is a thin volume, whose begin time LVM fixes in its own time" in ran.said
        assert (play.picture(other, *targets), sh("lvs", "--noheadings", "-a", vg)) == before
    finally:
        for fd in fds:
            os.close(fd)


def test_refusal_of_one_volume_changes_nothing(play: Scene) -> None:
    volumes = Volumes(play)
    small = play.stage.disk(1)
    first, target = volumes.origins[0], volumes.targets[0]
    for pairs, status, said in (
        (["--pair", volumes.origins[1], small], 3, "too small"),
        (["--pair", volumes.origins[1], target], 3, "the destination of another"),
        (["--pair", first, volumes.targets[1]], 3, "the source of another"),
        (["--pair", target, volumes.targets[1]], 3, "the source of another"),
        (["--pair", volumes.origins[1], "/dev/none"], 3, "/dev/none"),
        ([], 2, "no group"),
    ):
        before = play.picture(*volumes.origins, *volumes.targets)
        ran = play.fork("copy", "--pair", first, target, *pairs)
        assert (ran.status, ran.stdout) == (status, ""), ran
        assert said in ran.said
        assert play.picture(*volumes.origins, *volumes.targets) == before
    ran = play.fork(*volumes.copy("--cow", f"{small}"))
    assert ran.status == 2
    assert "each of the 2 volumes needs its own" in ran.said


def assert_undone(volumes: Volumes, ran: Ran, status: int, writer: Writer) -> None:
    """The group failed, all volumes are as they were, and the application goes on."""
    assert ran.status == status, ran
    writer.goes_on()
    volumes.assert_back()
    assert views(volumes.play)["g"]["state"] in ("failed", "cancelled")
    assert {one["dead"] for one in views(volumes.play).values()} == {False}


def test_volume_too_slow_for_the_hold_limit_undoes_all(play: Scene) -> None:
    volumes = Volumes(play)
    slow = play.slow(play.stage.disk(MIB), write_ms=60_000)
    volumes.origins.append(play.origin(under=slow))
    volumes.targets.append(play.stage.disk(MIB))
    volumes.tables.append(sh("dmsetup", "table", volumes.origins[-1]))
    with alternating(play.folder, volumes.origins[:2]) as writer, ExitStack() as stack:
        write = (
            "dd",
            "if=/dev/zero",
            f"of={volumes.origins[2]}",
            "bs=4k",
            "count=1",
            "oflag=direct",
        )
        process = stack.enter_context(subprocess.Popen(write, stderr=subprocess.DEVNULL))
        ran = play.fork(*volumes.copy("--hold-limit", "0.2"))
        assert "0.2 s" in ran.stderr
        assert "3 attempts" in ran.stderr
        assert ran.of_kind("begun") == []
        play.hurry(slow)
        assert process.wait(timeout=30) == 0, "its write came through"
        assert_undone(volumes, ran, 1, writer)


def test_begin_that_fails_for_one_volume_undoes_all(play: Scene) -> None:
    """A COW file cannot be made: something lies where the second volume's should be."""
    volumes = Volumes(play)
    (play.state / "cow" / "dmcopy-g.2.cow").mkdir(parents=True)
    with alternating(play.folder, volumes.origins) as writer:
        ran = play.fork(*volumes.copy())
        assert "g.2" in ran.stderr
        (play.state / "cow" / "dmcopy-g.2.cow").rmdir()
        assert_undone(volumes, ran, ran.event("ended")["exit_status"], writer)
    assert ran.status != 0


@pytest.mark.parametrize("who", ["member", "leader"])
def test_death_before_the_begin_time_undoes_all(play: Scene, who: str) -> None:
    """As soon as the members are there, and make themselves ready."""
    volumes = Volumes(play)
    hook = play.folder / "hook"  # who is slow to kill comes before the begin time all the same
    hook.write_text('#!/bin/sh\ntest "$1" != before || sleep 3\n')
    hook.chmod(0o755)
    with alternating(play.folder, volumes.origins) as writer:
        running = play.start(*volumes.copy("--hook", str(hook)))
        until(lambda: len(members()) == 2, "the members started")
        victim = min(members().values()) if who == "member" else running.process.pid
        os.kill(victim, signal.SIGKILL)
        ran = running.ended()
        until(lambda: not members(), "the members ended")
        no_helpers()
        if who == "leader":
            assert play.fork("resume", "g").status == 3
            mended = play.fork("rescue")
            assert mended.status == 0, mended
            volumes.assert_back()
            assert views(play)["g"]["state"] == "failed"
            writer.goes_on()
        else:
            assert_undone(volumes, ran, 5, writer)


@pytest.mark.parametrize(
    "at",
    [
        "before DeadMan.disarm",
        "after Journal.move",
    ],
)
def test_leader_killed_at_the_instant_leaves_nothing_held(play: Scene, at: str) -> None:
    """Whatever it did last: writes go on, and the group can be gone on with, or is undone."""
    volumes = Volumes(play)

    def fuse() -> Context:
        return killer.context(at, "control", play.folder / "note")

    with alternating(play.folder, volumes.origins) as writer:
        ran = play.fork(*volumes.copy("--rate", "1m"), prepare=fuse)
        assert ran.status == -signal.SIGKILL, ran
        writer.goes_on()
        until(lambda: not members(), "the members ended")
        no_helpers()
        resumed = play.fork("resume", "g", "--json")
        if resumed.status == 0:
            volumes.assert_copied(resumed)
        else:
            assert resumed.status == 3, resumed
            assert "begin time" in resumed.said
            assert play.fork("cancel", "g").status == 0
            volumes.assert_back()
        writer.goes_on()
    assert (resumed.status == 0) == (at == "after Journal.move")


# interrupted, and gone on with


@pytest.mark.parametrize("how", ["SIGTERM", "leader"])
def test_interrupted_group_goes_on_with_all_of_its_volumes(play: Scene, how: str) -> None:
    volumes = Volumes(play)
    with alternating(play.folder, volumes.origins) as writer:
        running = volumes.running()
        if how == "SIGTERM":
            running.kill(signal.SIGTERM)
        else:
            running.kill()
        ran = running.ended()
        assert ran.status == (-signal.SIGKILL if how == "leader" else 5), ran
        until(lambda: not members(), "the members ended")
        writer.goes_on()
        found = views(play)
        assert {view["can_resume"] for view in found.values()} == {True}, found
        alone = play.fork("resume", "g.1")
        assert alone.status == 3
        assert "dmcopy resume g" in alone.said
        assert "dmcopy cancel g" in play.fork("cancel", "g.2").said
        kept = play.fork("rescue")
        assert kept.status == 0, kept
        resumed = play.fork("resume", "g", "--json")
        volumes.assert_copied(resumed)
        assert resumed.event("ended")["begin_time"] is not None
        times = {event["begin_time"] for event in resumed.of_kind("resumed")}
        assert times == {resumed.event("ended")["begin_time"]}


def test_group_that_lost_one_point_in_time_undoes_all(play: Scene) -> None:
    """The second volume's COW device overflows; a group with a volume missing is no copy."""
    volumes = Volumes(play, mib=8)
    with alternating(play.folder, volumes.origins) as writer:
        running = volumes.running("--cow", "1m")
        harness.write_device(volumes.origins[1], bytes(4 << 20), offset=2 << 20)
        ran = running.ended()
        assert "g.2" in ran.stderr
        assert "dmcopy copy --pair" in ran.stderr
        assert_undone(volumes, ran, 4, writer)
        states = {one["job"]: one["state"] for one in ran.event("ended")["members"]}
        assert states == {"g.1": "cancelled", "g.2": "failed"}


@pytest.mark.parametrize("on_full", ["fail", "hold"])
def test_group_whose_cow_device_cannot_grow_is_lost_or_its_writers_are_braked(
    play: Scene, on_full: str
) -> None:
    """One volume is written to in another place as well, and copied slowly."""
    volumes = Volumes(play, mib=16)
    volumes.targets[1] = slow = play.slow(volumes.targets[1], write_ms=150)
    before = harness.pattern(15 << 20)
    harness.write_device(volumes.origins[1], before, offset=1 << 20)
    size = ("--cow", "4m", "--segment", "256k", "--batch", "1m", "--hold-limit", "2")
    over, braked = threading.Event(), threading.Event()
    with alternating(play.folder, volumes.origins) as writer, ThreadPoolExecutor() as pool:
        running = play.start(*volumes.copy(*size, "--on-full", on_full))
        group_event(running, "begun")
        pause = braked if on_full == "hold" else None
        overwritten = pool.submit(_overwrite, volumes.origins[1], over, pause)
        try:
            if pause is not None:
                while running.wait_for("braked")["job"] != "g.2":
                    pass
                pause.set()
                time.sleep(8)  # nobody held, it would be full many times over
                play.hurry(slow)
            ran = running.ended(120)
        finally:
            over.set()
        if on_full == "fail":
            assert_undone(volumes, ran, 4, writer)
        else:
            volumes.assert_copied(ran)
            assert read_device(volumes.targets[1])[1 << 20 :] == before
            told = [event for event in ran.of_kind("braked") if event["milliseconds"]]
            assert "g.2" in {event["job"] for event in told}, "it was not braked"
            assert {event["group"] for event in told} == {"g"}
        writer.goes_on()
        overwritten.result()


def _overwrite(path: str, over: threading.Event, braked: threading.Event | None) -> None:
    """Write from the end on, what `alternating` leaves alone, a chunk when the last is on disk.

    With 4 MiB for 254 of them *braked* is waited for when there is room for a few only.
    """
    chunk = CHUNK << 9
    fd = os.open(path, os.O_WRONLY | os.O_DSYNC)
    try:
        for number, offset in enumerate(range(16 << 20, 1 << 20, -chunk)):
            if number == 175 and braked is not None:
                braked.wait(20)
            os.pwrite(fd, bytes(chunk), offset - chunk)
            if over.wait(0.015):
                return
    finally:
        os.close(fd)


def test_running_group_is_steered_as_one_job(play: Scene) -> None:
    volumes = Volumes(play)
    with alternating(play.folder, volumes.origins):
        running = volumes.running()
        assert play.fork("pause", "g").status == 0
        found = views(play)
        assert {found[name]["state"] for name in ("g.1", "g.2")} == {"paused"}
        shown = play.fork("show", "g")
        assert "g.1:" in shown.stdout
        assert "g.2:" in shown.stdout
        assert play.fork("set", "g", "rate=none").status == 0
        assert "dmcopy order g.1" in play.fork("order", "g").said
        assert play.fork("order", "g.2", "--by", "cow").status == 0
        assert "dmcopy report g.1" in play.fork("report", "g", "--output", "-").said
        assert "dmcopy show --map g.1" in play.fork("show", "g", "--map").said
        assert play.fork("resume", "g").status == 0
        volumes.assert_copied(running.ended())
        taken = play.fork("copy", "--name", "g.1", volumes.origins[0], volumes.targets[0])
        assert taken.status == 3
        assert "is how a volume of the group g is called" in taken.said


def test_cancelled_group_is_undone(play: Scene) -> None:
    volumes = Volumes(play)
    with alternating(play.folder, volumes.origins) as writer:
        running = volumes.running()
        assert play.fork("cancel", "g").status == 0
        assert_undone(volumes, running.ended(), 5, writer)


def test_plan_of_a_group_holds_all_before_one_goes_on(play: Scene) -> None:
    volumes = Volumes(play)
    for origin in volumes.origins:
        play.hold_open(origin)
    before = play.picture(*volumes.origins, *volumes.targets)
    plan = play.fork("plan", "--name", "g", *volumes.pairs, "--chunk", "16k")
    assert plan.status == 0, plan
    names = [os.path.basename(origin) for origin in volumes.origins]
    said = [line.removeprefix("dmsetup ") for line in plan.stdout.splitlines()]
    held = [said.index(f"suspend {name}") for name in names]
    going = [said.index(f"resume {name}") for name in names]
    loaded = [n for n, line in enumerate(said) if any(f"load {name}" in line for name in names)]
    assert len(loaded) == len(names)
    assert max(loaded) < min(held) <= max(held) < min(going)
    assert play.picture(*volumes.origins, *volumes.targets) == before


def test_kept_snapshots_of_a_group_end_together(play: Scene) -> None:
    volumes = Volumes(play)
    with alternating(play.folder, volumes.origins) as writer:
        ran = play.fork(*volumes.copy("--keep"))
        assert ran.status == 0, ran
        assert ran.event("ended")["kept"]
        assert disorder(volumes.images()) == []
        assert {view["kept"] for view in views(play).values()} == {True}
        assert play.fork("cancel", "g").status == 0
        writer.goes_on()
    volumes.assert_back()
    assert {view["state"] for view in views(play).values()} == {"ended"}
