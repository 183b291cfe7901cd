"""The data is right or the job says that it is lost, and no write is ever stuck.

Killed at random, short of processes and memory, with a full or read-only state directory, under
a clock that jumps, or two at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.lab import harness
from tests.lab.scene import SLACK, Ran, Running, Scene, scene, timed_write
from tests.lab.stage import patiently, sh
from tests.lab.torture import TALLY, Session, Torture

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

MIB: Final = 1 << 20
KILLS: Final = int(os.environ.get("DMCOPY_KILLS", "20"))
# what is drawn can be had again; `lab.soak` draws anew
SEED: Final = int(os.environ.get("DMCOPY_KILLS_SEED", "1"))


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("torture") as here:
        yield here


@pytest.mark.timeout(120 + 5 * KILLS)
def test_killed_at_random_it_is_right_or_says_that_it_is_lost(at: Scene) -> None:
    print(f"DMCOPY_KILLS_SEED={SEED}")
    torture = Torture(at, SEED, TALLY)

    def is_enough() -> bool:
        # a session with a gate has more processes to kill, so fewer sessions make up the number
        return TALLY.kills >= KILLS and TALLY.images >= KILLS // 10

    while not is_enough():
        with torture.load():
            load_ends = time.monotonic() + 100
            while not is_enough() and time.monotonic() < load_ends:
                torture.copy()
                print(f"{time.monotonic():.1f} {TALLY}")
    assert TALLY.kills >= KILLS
    assert TALLY.images >= KILLS // 10
    assert (TALLY.wrong, TALLY.stuck) == (0, 0)


# short of processes, short of memory


class Group:
    """A control group for dmcopy and for what it must share with: *limits* hold for both."""

    def __init__(self, at: Scene, **limits: str) -> None:
        mount = at.folder / "cgroup"
        mount.mkdir()
        sh("mount", "-t", "cgroup2", "none", str(mount))
        at.stage.later(patiently, "umount", str(mount))
        (mount / "cgroup.subtree_control").write_text("+pids +memory")
        self.path = mount / f"{at.stage.name}-group"
        self.path.mkdir()
        at.stage.later(self._remove)
        (self.path / "cgroup.subtree_control").write_text("+pids +memory")
        for name, value in limits.items():
            (self.path / name.replace("_", ".")).write_text(value)
        for name in ("job", "other"):
            (self.path / name).mkdir()

    def enter(self, name: str, oom: int = 0) -> None:
        """Move this process there; with *oom* (-1000 to 1000) it is killed first, or last."""
        (self.path / name / "cgroup.procs").write_text("0")
        Path("/proc/self/oom_score_adj").write_text(str(oom))

    def count(self, file: str, name: str) -> int:
        words = (self.path / file).read_text().split()
        return int(words[words.index(name) + 1])

    @contextmanager
    def other(self, program: str) -> Iterator[None]:
        """Run a program in the group; in the end it and all that it started are killed."""
        argv = [sys.executable, "-S", "-c", program]
        process = subprocess.Popen(argv, preexec_fn=lambda: self.enter("other"))  # noqa: PLW1509 (no threads here)
        try:
            yield
        finally:
            (self.path / "other/cgroup.kill").write_text("1")
            process.wait(timeout=10)

    def _remove(self) -> None:
        for name in ("job", "other"):
            (self.path / name / "cgroup.kill").write_text("1")
            patiently("rmdir", str(self.path / name))
        self.path.rmdir()


BOMB: Final = """
import os, time
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        os.fork()
    except OSError:
        time.sleep(0.05)
"""
HOG: Final = """
held = []
for _ in range(1000):
    held.append(b"x" * (1 << 20))
"""


class Siege:
    """Copies that share a group with a program that takes everything there is."""

    def __init__(self, at: Scene, group: Group, program: str, seconds: float) -> None:
        self.group = group
        self._seconds = seconds  # the program runs at most so long
        self.torture = Torture(at, SEED, TALLY)
        self._program = program
        self._when = ""
        self.died = 0  # sessions of which a process was killed

    def copy(self, when: str, *, oom: int = 0) -> str:
        self._when = when
        end = self.torture.copy(self._disturb, lambda: self.group.enter("job", oom))
        self.died += sum("status -9" in said or "SIGKILL" in said for said in self.torture.story)
        return end

    def _disturb(self, session: Session) -> None:
        chance = self.torture.chance
        self.torture.wait(session, self._when)
        with self.group.other(self._program):
            end = time.monotonic() + chance.uniform(0.4, 1) * self._seconds
            killed = self.group.count("memory.events", "oom_kill")
            while time.monotonic() < end and session.poll() is None:
                if self.group.count("memory.events", "oom_kill") > killed + chance.randrange(2):
                    break
                self.torture.writes_go_on(f"while {self._when}")
                time.sleep(0.05)


def test_fork_bomb_around_begin_time(at: Scene) -> None:
    print(f"DMCOPY_KILLS_SEED={SEED}")
    siege = Siege(at, Group(at, pids_max="40"), BOMB, 2.5)
    with siege.torture.load():
        ends = [siege.copy(when) for when in ("at once", "hold", "copying")]
    print(ends, TALLY)
    assert siege.group.count("other/pids.events", "max") > 0, "nobody was refused a process"
    assert "right" in ends


def test_out_of_memory_around_begin_time(at: Scene) -> None:
    """The kernel kills control, worker, both or the hog, whichever is the largest or named."""
    print(f"DMCOPY_KILLS_SEED={SEED}")
    siege = Siege(at, Group(at, memory_max=str(128 * MIB)), HOG, 10.0)
    with siege.torture.load():
        ends = [
            siege.copy(when, oom=oom)
            for when, oom in (("hold", 1000), ("copying", 1000), ("any", 500))
        ]
        while "right" not in ends and len(ends) < 6:  # each of them may be lost
            ends.append(siege.copy("copying", oom=1000))
        afterwards = siege.torture.copy(lambda _: None, lambda: None)
    print(ends, afterwards, siege.died, TALLY)
    assert siege.died > 0, "only the hog was killed"
    assert "right" in ends
    assert afterwards == "right"


# the state directory


def state_on(at: Scene, *options: str, device: str = "tmpfs", kind: str = "tmpfs") -> None:
    at.state.mkdir()
    sh("mount", "-t", kind, *options, device, str(at.state))
    at.stage.later(patiently, "umount", str(at.state))


def fill(at: Scene) -> Path:
    """Leave not a byte free below the state directory."""
    filler = at.state / "filler"
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


class Watched:
    """A copy under a load that is disturbed by hand, and what its image must be."""

    def __init__(self, at: Scene, *options: str) -> None:
        self.at = at
        self.origin = at.origin(4)
        harness.write_device(self.origin, harness.pattern(4 * MIB))
        self.table = sh("dmsetup", "table", self.origin)
        self.destination = at.slow(at.stage.disk(4), write_ms=200)
        self.argv: tuple[str, ...] = (
            "copy",
            self.origin,
            self.destination,
            "--name",
            "job",
            "--json",
        )
        self.argv += ("--segment", "256k", "--batch", "512k", *options)
        self.witness = b""

    def begin(self) -> Running:
        """Give it when its image was read, before anything passes the snapshot by."""
        running = self.at.start(*self.argv, "--hold-start")
        begun = running.wait_for("begun")
        self.witness = harness.read_device(begun["snapshot"])
        running.wait_for("paused")
        assert self.at.fork("resume", "job").status == 0
        running.wait_for("resumed")
        return running

    def assert_right(self, ran: Ran) -> None:
        assert ran.status == 0, ran
        assert ran.event("ended")["state"] == "ended"
        assert harness.differing(harness.read_device(self.destination), self.witness) == []
        self.at.assert_clean(self.origin, self.table)

    def assert_right_copy(self) -> None:
        """The same copy is right now that nothing is in its way."""
        running = self.begin()
        self.assert_right(running.ended())

    def assert_refused(self, devices: dict[str, str], word: str) -> None:
        """It says why, and nothing was changed."""
        ran = self.at.fork(*self.argv)
        assert ran.status in (1, 3), ran
        assert ran.stderr.startswith("dmcopy: "), ran
        assert word in ran.said, ran
        now = self.at.picture()
        assert {name: now[name] for name in devices} == devices
        self.at.assert_back(self.origin, self.table)

    def devices(self) -> dict[str, str]:
        return {name: said for name, said in self.at.picture().items() if name != "files"}


def warnings(ran: Ran) -> list[str]:
    return [event["message"] for event in ran.events if event["event"] == "warning"]


def test_state_directory_that_fills_up_does_not_end_the_copy(at: Scene) -> None:
    state_on(at, "-o", "size=16m")
    job = Watched(at, "--verify")
    with at.load(job.origin):
        running = job.begin()
        filler = fill(at)
        running.wait_for("progress")
        fill(at)  # a retire under way may just have made the journal's WAL smaller
        ran = running.ended()
        status = at.fork("status")
        assert status.status == 0, status
        job.assert_right(ran)
        print(warnings(ran))
        # where the first that cannot be recorded is that something is to be retired, it is not
        said = [text for text in warnings(ran) if "could not be retired" not in text]
        assert "the copy goes on, but could not be resumed from here" in said[0]
        full = at.fork("rescue")
        assert "Traceback" not in full.stderr, full
        filler.unlink()
        assert at.fork("rescue").status == 0
        assert at.fork("status").stdout == "no jobs under way (dmcopy list: all)\n"


def test_state_directory_that_is_full_at_the_start_is_said(at: Scene) -> None:
    state_on(at, "-o", "size=1m")
    filler = fill(at)
    job = Watched(at, "--cow", at.stage.disk(8))
    at.hold_open(job.origin)
    job.assert_refused(job.devices(), "no space left")
    filler.unlink()
    job.assert_right_copy()


def test_read_only_state_directory_at_the_start_is_said(at: Scene) -> None:
    state_on(at, "-o", "ro,size=16m")
    job = Watched(at)
    at.hold_open(job.origin)
    job.assert_refused(job.devices(), "ead-only")
    assert at.fork("status").status == 0
    assert at.fork("rescue").status == 0
    sh("mount", "-o", "remount,rw", str(at.state))
    job.assert_right_copy()


@pytest.mark.parametrize("cow", ["device", "file"])
def test_state_directory_that_becomes_read_only(at: Scene, cow: str) -> None:
    """As after an I/O error of its disk.  A COW file in it is lost with it, and that is said."""
    disk = at.stage.disk(32)
    sh("mkfs.ext4", "-q", disk)
    state_on(at, "-o", "errors=remount-ro", device=disk, kind="ext4")
    job = Watched(at, *(["--cow", at.stage.disk(8)] if cow == "device" else []))
    with at.load(job.origin):
        running = job.begin()
        sh("mount", "-o", "remount,abort", str(at.state))
        ran = running.ended()
        assert timed_write(job.origin) < 1 + SLACK
        if cow == "device":
            job.assert_right(ran)
            # where the first that cannot be recorded is that something is to be retired, it is not
            said = [text for text in warnings(ran) if "could not be retired" not in text]
            assert len(said) == 1, warnings(ran)
            assert "could not be resumed from here" in said[0]
        else:
            assert ran.status in (4, 6), ran
            assert sh("dmsetup", "table", job.origin) == job.table
        assert "Traceback" not in at.fork("status").stderr
        patiently("umount", str(at.state))
        sh("mount", disk, str(at.state))
        rescued = at.fork("rescue")
        assert rescued.status == 0, rescued
        at.assert_clean(job.origin, job.table)


# the clock


@contextmanager
def jumping() -> Iterator[Callable[[float], None]]:
    """Give what sets the clock forward or back by seconds; it is right again at the end."""
    real, steady = time.time(), time.monotonic()

    def jump(seconds: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)

    try:
        yield jump
    finally:
        time.clock_settime(time.CLOCK_REALTIME, real + time.monotonic() - steady)


@pytest.mark.parametrize("days", [1, -1])
def test_clock_that_jumps(at: Scene, days: int) -> None:
    job = Watched(at, "--verify", "--rate", "1m")
    with at.load(job.origin), jumping() as jump:
        running = at.start(*job.argv)
        running.wait_for("planned")
        jump(days * 86400)
        before = time.time_ns()
        begun = running.wait_for("begun")
        assert before <= harness.nanoseconds(begun["begin_time"]) <= time.time_ns()
        job.witness = harness.read_device(begun["snapshot"])
        running.wait_for("progress")
        jump(-2 * days * 86400)
        running.wait_for("progress")
        running.kill()
        running.ended()
        jump(3 * days * 86400)
        assert "interrupted" in at.fork("status").stdout
        resumed = at.start("resume", "job", "--json")
        resumed.wait_for("progress")
        jump(-days * 86400)
        ran = resumed.ended()
    job.assert_right(ran)
    ended = ran.event("ended")
    assert ended["begin_time"] == begun["begin_time"]
    assert 0 < ended["seconds"] <= ran.seconds
    for event in ran.events:
        if event["event"] == "progress":
            assert 0 <= event["rate_bytes"] < 1 << 30, event
            for value in (event["eta_seconds"], event["cow_full_seconds"]):
                assert value is None or 0 <= value < 3600, event
    assert all(0 <= seconds < 2 for seconds in ended["hold_seconds"])


# two at a time


@pytest.mark.parametrize("names", [("one", "two"), ("one", "one")], ids=["one-origin", "one-name"])
def test_two_copies_that_begin_at_the_same_time(at: Scene, names: tuple[str, str]) -> None:
    """Both look, neither sees the other; one of them is right, or both say why not."""
    for seed in range(2):
        torture = Torture(at, SEED + seed, TALLY)
        with torture.load():
            ends = torture.race(names, late=torture.chance.uniform(0, 0.3))
        print(ends)
        assert "right" in ends
