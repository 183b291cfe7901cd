"""A job that was interrupted goes on as of its begin time, and repeats one batch at the most.

The witness is the kernel's snapshot, read while the first session copies; the application's load
goes on through all of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.common import Context
from dmcopy.destinations.block import BlockDestination
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.resume import prepare_resume
from dmcopy.jobs.runner import CopyJob
from dmcopy.jobs.spec import Places
from tests.lab import harness
from tests.lab.scene import (
    SLACK,
    Ran,
    Running,
    Scene,
    helpers,
    is_suspended,
    kill_all,
    reload,
    scene,
    timed_write,
    worker_pid,
)
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

MIB = 1 << 20
SIZE = 16  # MiB
SEGMENT = 256 << 10
BATCH = 1 << 20
JOB = ("--name", "job", "--json", "--segment", "256k", "--batch", "1m")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("resume") as here:
        yield here


@pytest.fixture
def origin(at: Scene) -> str:
    path = at.origin(SIZE)
    harness.write_device(path, harness.pattern(SIZE * MIB))
    return path


def slow_disk(at: Scene) -> str:
    """Give a destination that takes some seconds for the whole."""
    return at.slow(at.stage.disk(SIZE), write_ms=60)


class Job:
    """A copy under way, and what its image must be."""

    def __init__(self, at: Scene, origin: str, destination: str, *options: str) -> None:
        self.at = at
        self.origin = origin
        self.destination = destination
        self.table = sh("dmsetup", "table", origin)
        self.running = at.start("copy", origin, destination, *JOB, "--hold-start", *options)
        begun = self.running.wait_for("begun")
        self.begin_time = begun["begin_time"]
        # held until then, so that nothing passes the snapshot by
        self.witness = harness.read_device(begun["snapshot"])
        self.running.wait_for("paused")
        assert at.fork("resume", "job").status == 0
        self.running.wait_for("resumed")

    def copied(self, least: int) -> int:
        """Let it copy; give how much was done when at least *least* bytes were."""
        while True:
            done = int(self.running.wait_for("progress")["bytes_done"])
            if done >= least:
                return done

    def interrupt(self, how: Callable[[Running], object]) -> Ran:
        how(self.running)
        return self.running.ended()

    def image(self) -> bytes:
        path = self.destination.removeprefix("image:")
        return Path(path).read_bytes() if os.path.isfile(path) else harness.read_device(path)

    def resume(self, *options: str) -> Ran:
        return self.at.run("resume", "job", "--json", *options)

    def assert_right(self, ran: Ran) -> None:
        assert ran.status == 0, ran
        ended = ran.event("ended")
        assert (ended["state"], ended["begin_time"]) == ("ended", self.begin_time)
        assert ended["bytes_source"] + ended["bytes_cow"] == SIZE * MIB
        assert harness.differing(self.image(), self.witness) == []
        self.at.assert_clean(self.origin, self.table)
        assert self.at.fork("rescue").stdout == "nothing to rescue\n"


def bytes_written(path: str) -> int:
    number = os.stat(path).st_rdev
    stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text()
    return int(stat.split()[6]) * 512


def kill_worker(_running: Running) -> None:
    os.kill(worker_pid(), signal.SIGKILL)


INTERRUPTIONS: dict[str, Any] = {
    "ctrl-c": lambda running: running.kill(signal.SIGINT),
    "sigkill": lambda running: running.kill(signal.SIGKILL),
    "worker": kill_worker,
    "both": kill_all,
}


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_interrupted_copy_goes_on_as_of_its_begin_time(at: Scene, origin: str, how: str) -> None:
    with at.load(origin):
        job = Job(at, origin, slow_disk(at))
        job.copied(4 * BATCH)
        ran = job.interrupt(INTERRUPTIONS[how])
        assert ran.status == (-signal.SIGKILL if how in ("sigkill", "both") else 5), ran
        assert timed_write(origin) < 1 + SLACK
        assert "snapshot-origin" in sh("dmsetup", "table", origin), "the point in time stays"
        if ran.status == 5:
            assert "go on: dmcopy resume job" in ran.said
            assert ran.event("ended")["state"] == "paused"
        time.sleep(0.3)  # the load writes
        job.assert_right(job.resume("--verify"))


def test_resume_costs_at_most_one_batch(at: Scene, origin: str) -> None:
    """Shown by the kernel's own count of what the destination got, and by ours."""
    destination = slow_disk(at)
    with at.load(origin):
        before = bytes_written(destination)
        job = Job(at, origin, destination)
        job.copied(5 * BATCH)
        job.interrupt(kill_all)
        first = bytes_written(destination) - before
        ran = job.resume()
        job.assert_right(ran)
        done = ran.event("resumed")["bytes_done"]
        ended = ran.event("ended")
        assert ended["bytes_resumed"] == done >= 4 * BATCH
        assert 0 <= first - done <= BATCH, "that much was copied, and is copied again"
        assert bytes_written(destination) - before == SIZE * MIB + first - done


def test_image_file_is_gone_on_with(at: Scene, origin: str) -> None:
    image = f"{at.folder}/copy.img"
    with at.load(origin):
        job = Job(at, origin, f"image:{image}", "--rate", "4m")
        job.copied(3 * BATCH)
        job.interrupt(INTERRUPTIONS["sigkill"])
        assert os.path.exists(f"{image}.partial")
        assert at.fork("set", "job", "rate=none").status == 0
        job.assert_right(job.resume("--verify"))
        assert not os.path.exists(f"{image}.partial")


def test_interrupted_again_and_again(at: Scene, origin: str) -> None:
    with at.load(origin):
        job = Job(at, origin, slow_disk(at))
        for round_ in range(4):
            job.copied((2 + 2 * round_) * BATCH)
            job.interrupt(kill_all if round_ % 2 else INTERRUPTIONS["ctrl-c"])
            job.running = at.start("resume", "job", "--json", "--verify")
        job.assert_right(job.running.ended())


def test_pause_holds_the_copy_and_resume_goes_on(at: Scene, origin: str) -> None:
    with at.load(origin):
        job = Job(at, origin, slow_disk(at))
        job.copied(2 * BATCH)
        assert at.run("pause", "job").stdout.startswith("job is paused")
        job.running.wait_for("paused")
        before = harness.writes_of(job.destination)
        status = at.fork("status")
        assert "paused (pid" in status.stdout
        assert at.fork("pause", "job").status == 0, "twice is fine"
        time.sleep(0.5)
        assert harness.writes_of(job.destination) == before
        assert at.fork("resume", "job").stdout == "job goes on\n"
        refused = at.fork("resume", "job")
        assert refused.status == 3
        assert "job job is running" in refused.said
        job.running.wait_for("resumed")
        job.assert_right(job.running.ended())


def test_job_that_was_worked_on_after_it_was_looked_at_is_refused(at: Scene, origin: str) -> None:
    """Another resume gets in between the look and the lock, and is interrupted in its turn."""
    with at.load(origin):
        job = Job(at, origin, slow_disk(at), "--rate", "2m")
        job.copied(BATCH)
        job.interrupt(INTERRUPTIONS["ctrl-c"])
        places = Places(at.state, at.folder / "runtime")
        host = Context(places=places).host()
        with Journal(places.journal) as journal:
            stale = prepare_resume("job", host, journal, verify=False)
            job.running = at.start("resume", "job", "--json")
            started = job.running.wait_for("resumed")["bytes_done"]
            job.copied(started + BATCH)
            job.interrupt(INTERRUPTIONS["ctrl-c"])
            ended = CopyJob(stale, host, journal, lambda _: None).run()
        assert (ended.state, ended.exit_status) == ("paused", 3)
        assert "was worked on by another process meanwhile" in str(ended.error)
        job.assert_right(job.resume())


@pytest.mark.parametrize("state", ["running", "paused", "interrupted", "killed"])
def test_cancel_puts_everything_back(at: Scene, origin: str, state: str) -> None:
    image = f"{at.folder}/copy.img"
    with at.load(origin):
        job = Job(at, origin, f"image:{image}", "--rate", "2m")
        job.copied(BATCH)
        if state == "paused":
            assert at.run("pause", "job").status == 0
        elif state != "running":
            job.interrupt(INTERRUPTIONS["ctrl-c" if state == "interrupted" else "sigkill"])
        ran = at.run("cancel", "job")
        assert ran.status == 0, ran
        assert ran.stdout.splitlines()[-1] == "job: cancelled"
        if state in ("running", "paused"):
            ended = job.running.ended()
            assert (ended.status, ended.event("ended")["state"]) == (5, "cancelled")
        at.assert_clean(origin, job.table)
        assert not os.path.exists(image)
        refused = at.fork("resume", "job")
        assert refused.status == 3
        assert "it is cancelled" in refused.said


def test_verify_that_was_interrupted_is_made_up_for(at: Scene, origin: str) -> None:
    disk = at.slow(at.stage.disk(SIZE), read_ms=100)
    with at.load(origin):
        job = Job(at, origin, disk, "--verify")
        while job.running.wait_for("progress")["phase"] != "verify":
            pass
        ran = job.interrupt(INTERRUPTIONS["ctrl-c"])
        assert (ran.status, ran.event("ended")["state"]) == (5, "copied")
        at.assert_clean(origin, job.table)
        ran = job.resume()
        assert ran.event("ended")["verified"] is True
        job.assert_right(ran)


# the point in time is lost, and that is said


def lost(ran: Ran) -> str:
    assert ran.status == 4, ran
    assert "begin anew" in ran.stderr
    return ran.stderr


def test_full_cow_while_nobody_watched_is_lost(at: Scene, origin: str) -> None:
    table = sh("dmsetup", "table", origin)
    with at.load(origin, pause=0.0, max_blocks=64):
        running = at.start("copy", origin, slow_disk(at), *JOB, "--cow", "3m", "--hold-start")
        running.wait_for("begun")
        kill_all(running)
        running.ended()
        harness.until(lambda: "Invalid" in sh("dmsetup", "status", "dmcopy-job-snap"))
        assert "dead" in at.fork("status").stdout
        said = lost(at.run("resume", "job", "--json"))
        assert "the snapshot is no longer valid" in said
        at.assert_clean(origin, table)


def test_table_that_was_replaced_meanwhile_is_lost_and_left_alone(at: Scene, origin: str) -> None:
    job_table = sh("dmsetup", "table", origin)
    at.hold_open(origin)
    job = Job(at, origin, slow_disk(at))
    job.copied(BATCH)
    job.interrupt(kill_all)
    reload(os.path.basename(origin), job_table)
    said = lost(at.run("resume", "job", "--json"))
    assert f"the table of {os.path.basename(origin)} was replaced by" in said
    at.assert_clean(origin, job_table)


def test_removed_snapshot_is_lost(at: Scene, origin: str) -> None:
    at.hold_open(origin)
    job = Job(at, origin, slow_disk(at))
    job.copied(BATCH)
    job.interrupt(kill_all)
    harness.until(lambda: not helpers())
    sh("dmsetup", "remove", "--retry", "dmcopy-job-snap")
    said = lost(at.run("resume", "job", "--json"))
    assert "the snap device of the job was removed" in said
    at.assert_clean(origin, job.table)


# idle devices


@pytest.mark.parametrize("written", [False, True])
def test_idle_device_goes_on_unless_it_was_written(at: Scene, written: bool) -> None:
    disk = at.stage.disk(SIZE)
    harness.write_device(disk, harness.pattern(SIZE * MIB))
    image = harness.read_device(disk)
    destination = slow_disk(at)
    running = at.start("copy", disk, destination, *JOB)
    while running.wait_for("progress")["bytes_done"] < 3 * BATCH:
        pass
    running.kill()
    running.ended()
    if written:
        timed_write(disk, 0)
        ran = at.run("resume", "job", "--json")
        assert "was written after the job was interrupted (1 writes)" in lost(ran)
        return
    ran = at.run("resume", "job", "--json", "--verify")
    assert ran.status == 0, ran
    assert ran.event("ended")["bytes_resumed"] >= 2 * BATCH
    assert harness.differing(harness.read_device(destination), image) == []


# refusals


def test_what_cannot_be_resumed_says_why(at: Scene, origin: str) -> None:
    at.hold_open(origin)
    ran = at.fork("resume", "nobody")
    assert (ran.status, "there is no job nobody" in ran.said) == (2, True)
    assert at.run("copy", origin, at.stage.disk(SIZE), *JOB).status == 0
    refused = at.fork("resume", "job")
    assert refused.status == 3
    assert "job job cannot be resumed: it is ended" in refused.said
    waited = at.fork("wait", "job")
    assert (waited.status, waited.stdout, waited.stderr) == (0, "", "")


@pytest.mark.parametrize("who", ["control", "worker"])
def test_resume_that_is_refused_leaves_the_job_as_it_was(
    at: Scene, origin: str, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if who == "worker":  # whichever looks first refuses
        monkeypatch.setattr(BlockDestination, "check", lambda *_: None)
    with at.load(origin):
        job = Job(at, origin, slow_disk(at))
        job.copied(2 * BATCH)
        job.interrupt(kill_all)
        harness.until(lambda: not helpers())
        spliced = sh("dmsetup", "table", origin)
        with open(job.destination, "r+b"):
            refused = at.fork("resume", "job")
        assert refused.status == 3, refused
        assert "is open for writing by python" in refused.stderr
        assert sh("dmsetup", "table", origin) == spliced
        assert "interrupted" in at.fork("status").stdout
        monkeypatch.undo()
        job.assert_right(job.resume())


def test_rescue_keeps_a_job_whose_destination_is_away_and_lets_writes_go(
    at: Scene, origin: str
) -> None:
    disk = at.stage.disk(SIZE)
    with at.load(origin):
        job = Job(at, origin, at.slow(disk, write_ms=60))
        job.copied(2 * BATCH)
        job.interrupt(kill_all)
        harness.until(lambda: not helpers())
        table = sh("dmsetup", "table", job.destination)
        sh("dmsetup", "remove", "--retry", job.destination)
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", origin)  # whoever it was
        kept = at.fork("rescue")
        assert (kept.status, "job: was interrupted and is kept" in kept.stdout) == (0, True)
        assert not is_suspended(origin)
        refused = at.fork("resume", "job")
        assert refused.status == 3
        assert "there is no device" in refused.said
        sh("dmsetup", "create", os.path.basename(job.destination), "--table", table)
        job.assert_right(job.resume())


def test_second_dmcopy_on_the_same_job_is_refused(at: Scene, origin: str) -> None:
    with at.load(origin):
        job = Job(at, origin, slow_disk(at), "--rate", "2m")
        job.copied(BATCH)
        again = at.run("copy", origin, at.stage.disk(SIZE), *JOB)
        assert again.status == 3, again
        other = at.run("copy", origin, at.stage.disk(SIZE), "--name", "other", "--json")
        assert other.status == 3, other
        assert "is being copied already, by job job" in other.said
        assert at.fork("set", "job", "rate=none").status == 0
        job.assert_right(job.running.ended())


def test_detached_copy_goes_on_and_wait_tells_how_it_ended(at: Scene, origin: str) -> None:
    with at.load(origin):
        ran = at.run("copy", origin, slow_disk(at), *JOB, "--detach", "--no-retire")
        assert ran.status == 0, ran
        assert [event["event"] for event in ran.events][-1] == "begun"
        witness = harness.read_device(ran.event("begun")["snapshot"])
        assert at.fork("wait", "job", "--timeout", "0.2").status == 1
        waited = at.run("wait", "job", "--json")
        assert waited.status == 0, waited
        target = waited.events[-1]["destination"].removeprefix("block:")
        assert harness.differing(harness.read_device(target), witness) == []


def test_detached_copy_that_cannot_begin_says_why(at: Scene, origin: str) -> None:
    at.hold_open(origin)
    ran = at.run("copy", origin, origin, *JOB, "--detach")
    assert ran.status == 3, ran
    assert "is the source itself" in ran.said
