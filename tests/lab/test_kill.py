"""Whatever is killed, and wherever: the origin takes writes at once, the job goes on or is mended.

Before the begin time is on record, rescue puts everything back; after it, the job is kept and
resumed.  The changes are not listed here: `killer` counts them, and each run dies one change
later than the one before, until a run ends by itself.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from dmcopy.cli.common import Context
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.stack import steps
from tests.lab import killer, stamp
from tests.lab.scene import SLACK, Ran, Scene, no_helpers, scene, timed_write
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

MIB = 8
CHANGES = 38  # that a copy makes, at the least
KEPT = 9  # of these, with a begin time on record
JOB = ("--name", "job", "--json", "--segment", "1m")
SHARDS = 4  # so many sweeps would kill at every change; the torture draws those left out
UML = os.environ.get("LAB_GUEST") == "uml"


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("kill") as here:
        yield here


class Torture:
    """One origin under load, one job name, killed again and again."""

    def __init__(self, here: Scene, destination: str, *options: str) -> None:
        self.here = here
        self.origin = here.origin(MIB)
        self.table = sh("dmsetup", "table", self.origin)
        self.note = here.folder / "blown"
        self.argv = ("copy", self.origin, destination, "--name", "torture", "--json", *options)

    def kill(self, step: int | str, who: str, *, again: int = 0) -> tuple[Ran, str]:
        """Run until the fuse blows at *step*; give how it ended, and what the step was."""
        self.note.unlink(missing_ok=True)

        def prepare() -> Context:
            return killer.context(step, who, self.note, again=again)

        ran = self.here.fork(*self.argv, prepare=prepare)
        # Before anybody mends anything: the application's writes go on at once.
        assert timed_write(self.origin) < 1 + SLACK, self.note
        return ran, self.note.read_text() if self.note.exists() else ""

    def mend(self, where: str, *, again: bool = True) -> bool:
        """Rescue, and go on with what is kept; tell whether it was."""
        ran = self.here.fork("rescue")
        assert ran.status == 0, f"{where}: {ran}"
        kept = "go on: dmcopy resume torture" in ran.stdout
        if kept:
            assert timed_write(self.origin) < 1 + SLACK, where
            ran = self.here.fork("resume", "torture", "--json", "--verify")
            assert ran.status == 0, f"{where}: {ran}"
            assert ran.event("ended")["verified"] is True
        self.here.assert_clean(self.origin, self.table)
        if again:
            ran = self.here.fork("rescue")
            assert (ran.status, ran.stdout) == (0, "nothing to rescue\n"), where
        return kept

    def copy_again(self) -> None:
        """The same job, as if nothing had been, proved by a load that can be proved."""
        image = str(self.here.folder / "proof.img")
        stamp.fill(self.origin, seed=1)
        with self.here.load(self.origin) as log:
            ran = self.here.run(
                "copy", self.origin, f"image:{image}", "--name", "torture", "--verify", "--json"
            )
            time.sleep(0.2)
        assert ran.status == 0, ran
        begun = ran.event("begun")
        begin = nanoseconds(begun["begin_time"])
        end = begin + int(begun["hold_seconds"][0] * 1e9)
        verdict = stamp.check(image, log, 1, t0=begin, t1=end)
        assert verdict.is_good, verdict.wrong
        os.unlink(image)
        self.here.assert_clean(self.origin, self.table)


def nanoseconds(iso: str) -> int:
    whole, fraction = iso.removesuffix("Z").split(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(fraction)


def every_step(
    torture: Torture,
    who: str,
    after: Callable[[Ran, str], None],
    *,
    start: int,
    again: int = 0,
    stride: int = SHARDS,
) -> int:
    """Kill at each *stride*-th change until a run ends without; give how many were killed."""
    # slow enough that the load does not take half of the guest's only CPU
    with torture.here.load(torture.origin, pause=0.02):
        for number in itertools.count():
            ran, where = torture.kill(start + number * stride, who, again=again)
            print(f"{time.monotonic():.1f} {where.strip()}: {ran.status} in {ran.seconds:.1f} s")
            if not where:
                assert ran.status == 0, ran
                return number
            after(ran, where)
    raise AssertionError("not reached")


shards = pytest.mark.parametrize("start", [1])


@shards
def test_killed_control_is_mended_or_gone_on_with(at: Scene, start: int) -> None:
    torture = Torture(at, at.stage.disk(MIB))
    kept: list[str] = []

    def after(ran: Ran, where: str) -> None:
        assert ran.status == -signal.SIGKILL, f"{where}: {ran}"
        if torture.mend(where, again=start == 1):
            kept.append(where)

    assert every_step(torture, "control", after, start=start) >= CHANGES // SHARDS
    assert len(kept) >= KEPT // SHARDS, kept
    if start == 1:
        torture.copy_again()


@pytest.mark.parametrize(
    "options",
    [("--segment", "2m", "--gate", "segment")],
    ids=["gate"],
)
def test_killed_control_that_retires_or_gates_can_go_on(
    at: Scene, options: tuple[str, ...]
) -> None:
    torture = Torture(at, at.stage.disk(MIB), *options)
    kept: list[str] = []

    def after(ran: Ran, where: str) -> None:
        assert ran.status == -signal.SIGKILL, f"{where}: {ran}"
        if torture.mend(where, again=False):
            kept.append(where)

    kills = every_step(torture, "control", after, start=2, stride=12)
    assert kills > CHANGES // SHARDS
    assert len(kept) > KEPT // SHARDS, kept


def test_killed_control_and_worker_leave_no_unfinished_image(at: Scene) -> None:
    torture = Torture(at, f"image:{at.folder}/copy.img")

    def after(ran: Ran, where: str) -> None:
        assert ran.status == -signal.SIGKILL, f"{where}: {ran}"
        torture.mend(where)
        (at.folder / "copy.img").unlink(missing_ok=True)  # it was complete

    assert every_step(torture, "both", after, start=1) >= CHANGES // SHARDS
    torture.copy_again()


def test_killed_worker_is_noticed_and_made_up_for(at: Scene) -> None:
    torture = Torture(at, f"image:{at.folder}/copy.img")

    def after(ran: Ran, where: str) -> None:
        image = at.folder / "copy.img"
        if ran.status == 0:  # there was no worker yet, or it had done everything
            assert image.exists()
        else:
            assert ran.said.startswith("dmcopy: the copy worker died (killed by SIGKILL)"), where
            state = ran.event("ended")["state"]
            # when all was copied, it may have come as far as the name, and not as far as saying so
            assert not image.exists() or state == "copied", where
            assert (ran.status, state in ("paused", "copied", "cancelled")) == (5, True), where
            assert torture.mend(where, again=False) == (state != "cancelled"), where
            assert image.exists() == (state != "cancelled"), where
        image.unlink(missing_ok=True)
        at.assert_clean(torture.origin, torture.table)
        assert at.fork("rescue").stdout == "nothing to rescue\n", where

    assert every_step(torture, "worker", after, start=1) >= CHANGES // SHARDS
    torture.copy_again()


@pytest.mark.parametrize(("name", "again"), [("SIGTERM", 2)])
def test_interrupted_anywhere_even_twice_can_go_on_or_left_nothing(
    at: Scene, name: str, again: int
) -> None:
    torture = Torture(at, f"image:{at.folder}/copy.img")
    image = at.folder / "copy.img"

    def after(ran: Ran, where: str) -> None:
        assert ran.status == 5 or (ran.status == 0 and image.exists()), f"{where}: {ran}"
        if ran.status == 5:
            assert ran.said.startswith(f"dmcopy: interrupted by {name}"), where
            state = ran.event("ended")["state"]
            assert state in ("paused", "copied", "cancelled")
            if state != "cancelled":
                assert "go on: dmcopy resume torture" in ran.said
                cancelled = at.fork("cancel", "torture")
                assert cancelled.stdout.splitlines()[-1] == "torture: cancelled", cancelled
            assert not image.exists()
        image.unlink(missing_ok=True)
        at.assert_clean(torture.origin, torture.table)
        assert at.fork("rescue").stdout == "nothing to rescue\n", where

    every_step(torture, name, after, start=1 + again % SHARDS, again=again)
    torture.copy_again()


@pytest.mark.parametrize(
    "step",
    [
        "after DeadMan.__enter__",
        "after DeadMan.arm",
        "before DeadMan.disarm",
        "after DeadMan.disarm",
    ],
)
def test_killed_around_begin_time(at: Scene, step: str) -> None:
    torture = Torture(at, at.stage.disk(MIB))
    with at.load(torture.origin):
        ran, where = torture.kill(step, "control")
        assert (ran.status, bool(where)) == (-signal.SIGKILL, True)
        assert not torture.mend(where), "its begin time was not on record"


# while the copy runs


@pytest.fixture
def slowly(at: Scene) -> tuple[Scene, str, str]:
    """Give an origin and a destination that takes its time."""
    return at, at.origin(16), at.slow(at.stage.disk(16), write_ms=700)


def test_ctrl_c_in_mid_copy_is_status_5(slowly: tuple[Scene, str, str]) -> None:
    at, origin, destination = slowly
    table = sh("dmsetup", "table", origin)
    with at.load(origin):
        running = at.start(
            "copy", origin, destination, "--name", "job", "--json", "--segment", "1m"
        )
        running.wait_for("begun")
        running.wait_for("progress")
        running.kill(signal.SIGINT)
        running.kill(signal.SIGINT)
        ran = running.ended()
        assert ran.status == 5, ran
        assert ran.said == (
            "dmcopy: interrupted by SIGINT; go on: dmcopy resume job; give it up: dmcopy cancel job"
        )
        assert ran.event("ended")["exit_status"] == 5
        assert at.run("cancel", "job").status == 0
        at.assert_clean(origin, table)


def test_killed_in_mid_copy_is_mended_by_rescue(slowly: tuple[Scene, str, str]) -> None:
    at, origin, destination = slowly
    table = sh("dmsetup", "table", origin)
    with at.load(origin):
        running = at.start("copy", origin, destination, *JOB)
        running.wait_for("progress")
        running.kill()
        assert running.ended().status == -signal.SIGKILL
        assert timed_write(origin) < 1 + SLACK
        no_helpers()
        kept = at.run("rescue")
        assert (kept.status, "job: was interrupted and is kept" in kept.stdout) == (0, True)
        assert "snapshot-origin" in sh("dmsetup", "table", origin)
        assert at.run("rescue", "job").status == 0
        at.assert_clean(origin, table)


def test_rescue_lets_a_running_job_alone(slowly: tuple[Scene, str, str]) -> None:
    at, origin, destination = slowly
    job = (
        "copy",
        origin,
        destination,
        "--name",
        "busy",
        "--json",
        "--segment",
        "1m",
        "--no-retire",
    )
    with at.load(origin):
        running = at.start(*job)
        running.wait_for("progress")
        spliced = sh("dmsetup", "table", origin)
        refused = at.fork("rescue", "busy")
        assert (refused.status, refused.stdout) == (3, "")
        assert "job busy is running (pid " in refused.said
        assert at.fork("rescue").stdout == "nothing to rescue\n"
        assert sh("dmsetup", "table", origin) == spliced
        assert running.process.poll() is None
        at.hurry(destination)
        ran = running.ended()
        assert ran.status == 0, ran


def test_rescue_names_what_it_cannot_remove(
    slowly: tuple[Scene, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, origin, destination = slowly
    table = sh("dmsetup", "table", origin)
    at.hold_open(origin)  # idle, it would not be spliced
    running = at.start("copy", origin, destination, "--name", "stuck", "--json", "--segment", "1m")
    running.wait_for("progress")
    running.kill()
    running.ended()
    no_helpers()
    monkeypatch.setattr(steps, "_BUSY_SECONDS", 0.3)  # 10 s each otherwise
    fd = os.open("/dev/mapper/dmcopy-stuck-snap", os.O_RDONLY)
    try:
        ran = at.fork("rescue", "stuck", prepare=lambda: Context(dm=DmIoctl(retry=0.1)))
        assert ran.status == 6, ran
        assert "dmcopy-stuck-snap" in ran.said
        assert ran.said.endswith("run: dmcopy rescue stuck")
        assert sh("dmsetup", "table", origin) == table, "the origin comes first"
        assert timed_write(origin) < 1 + SLACK
    finally:
        os.close(fd)
    assert at.fork("rescue", "stuck").status == 0
    at.assert_clean(origin, table)
    assert at.fork("rescue", "stuck").stdout == "nothing to rescue\n"


def test_rescue_keeps_the_file_under_a_cow_device_of_the_users(at: Scene) -> None:
    origin = at.origin(16)
    destination = at.slow(at.stage.disk(16), write_ms=700)
    file = Path(at.stage.file(32))
    cow = at.stage.disk(file=str(file))
    running = at.start(
        "copy", origin, destination, "--cow", cow, "--name", "mine", "--json", "--segment", "1m"
    )
    with at.load(origin):
        running.wait_for("progress")
        running.kill()
        running.ended()
        assert at.fork("rescue", "mine").status == 0
    assert file.exists(), "rescue removed a file of the user's"
    assert cow in sh("losetup", "--noheadings", "--output", "NAME").split()
