"""Something breaks while a copy runs: what the user is told, and that the application sees nothing.

A slow destination gives the time to break things in; the application's load goes on all the
while, and a write of it that fails, fails the test.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator

import pytest

from dmcopy.jobs.standing import SplicedNow
from tests.lab.scene import (
    Ran,
    Running,
    Scene,
    digest,
    is_suspended,
    reload,
    scene,
    sectors,
    worker_pid,
)
from tests.lab.stage import sh

pytestmark = pytest.mark.lab

MIB = 16
JOB = ("--json", "--segment", "1m", "--name", "fault")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("fault") as here:
        yield here


@pytest.fixture
def origin(at: Scene) -> str:
    origin = at.origin(MIB)
    fill(origin)
    return origin


@pytest.fixture
def slow(at: Scene) -> str:
    """Give a destination that takes ten seconds and more for a whole copy."""
    return at.slow(at.stage.disk(MIB), write_ms=700)


def fill(device: str) -> None:
    """Data that is not zero: a zero segment would pass by what is to be broken."""
    block = os.urandom(1 << 20)
    with open(device, "r+b", buffering=0) as file:
        for _ in range(sectors(device) >> 11):
            file.write(block)
        os.fsync(file.fileno())


def failed(ran: Ran, status: int, kind: str) -> str:
    """Give what was said; the event and the line say the same."""
    assert ran.status == status, ran
    ended = ran.event("ended")
    assert (ended["exit_status"], ended["kind"], ended["state"]) == (status, kind, "failed"), ran
    assert ended["left"] == []
    assert ran.said == f"dmcopy: {ended['error']}"
    return ran.said


def in_mid_copy(at: Scene, *argv: str) -> Running:
    running = at.start("copy", *argv, *JOB)
    running.wait_for("progress")
    return running


def mapper(at: Scene, table: str) -> str:
    """Make a device that is going to be broken; give its path."""
    return at.stage.dm(table)


def direct_read(path: str, size: int) -> bytes:
    with mmap.mmap(-1, size) as memory:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            assert os.readv(fd, [memory]) == size
        finally:
            os.close(fd)
        return memory[:]


def break_it(path: str, *, only: str | None = None) -> None:
    """Let every request to *path* fail from now on; with *only*, those after some sectors."""
    reload(path, only or f"0 {sectors(path)} error")


# the COW device


def test_full_cow_loses_the_point_in_time_and_no_write(at: Scene, origin: str, slow: str) -> None:
    table = sh("dmsetup", "table", origin)
    with at.load(origin, pause=0.0, max_blocks=64):
        ran = at.run("copy", origin, slow, "--cow", "1m", *JOB)
        said = failed(ran, 4, "point-in-time-lost")
        assert said.startswith("dmcopy: the snapshot is no longer valid: the kernel ")
        assert "full or failed" in said
        at.assert_clean(origin, table)
    assert at.fork("rescue").stdout == "nothing to rescue\n"


def test_cow_that_fails_writes_loses_the_point_in_time(at: Scene, origin: str, slow: str) -> None:
    """Its header still says valid=1: only the kernel's status tells."""
    table = sh("dmsetup", "table", origin)
    disk = at.stage.disk(32)
    cow = mapper(at, f"0 65536 linear {disk} 0")
    with at.load(origin):
        running = in_mid_copy(at, origin, slow, "--cow", cow)
        sh("modprobe", "dm-flakey")
        reload(cow, f"0 65536 flakey {disk} 0 0 600 1 error_writes")
        said = failed(running.ended(), 4, "point-in-time-lost")
        assert "the kernel says '0 32768 snapshot Invalid'" in said
        at.assert_clean(origin, table)
    head = direct_read(disk, 4096)[:8]
    assert head == b"SnAp\1\0\0\0", "this kernel clears the flag: the test is moot"


def test_cow_that_vanishes_loses_the_point_in_time(at: Scene, origin: str, slow: str) -> None:
    table = sh("dmsetup", "table", origin)
    cow = mapper(at, f"0 65536 linear {at.stage.disk(32)} 0")
    with at.load(origin):
        running = in_mid_copy(at, origin, slow, "--cow", cow)
        break_it(cow)
        ran = running.ended()
        assert ran.status in (1, 4), ran  # whichever notices first: our read, or the kernel
        assert ran.event("ended")["kind"] in ("source", "point-in-time-lost")
        at.assert_clean(origin, table)


# the source


def test_source_that_cannot_be_read_is_named_with_the_offset(at: Scene, slow: str) -> None:
    disk = at.stage.disk(MIB)
    fill(disk)
    bad = 12 << 11  # the sectors of the thirteenth MiB
    under = mapper(
        at, f"0 {bad} linear {disk} 0\n{bad} 8 error\n"
        f"{bad + 8} {(MIB << 11) - bad - 8} linear {disk} {bad + 8}"
    )  # fmt: skip
    origin = at.origin(under=under)
    table = sh("dmsetup", "table", origin)
    at.hold_open(origin)
    ran = at.run("copy", origin, at.stage.disk(MIB), *JOB)
    said = failed(ran, 1, "source")
    assert f"bytes at {12 << 20}: Input" in said
    at.assert_clean(origin, table)


def test_source_that_breaks_in_mid_copy(at: Scene, slow: str) -> None:
    disk = at.stage.disk(MIB)
    fill(disk)
    under = mapper(at, f"0 {MIB << 11} linear {disk} 0")
    origin = at.origin(under=under)
    table = sh("dmsetup", "table", origin)
    at.hold_open(origin)
    running = in_mid_copy(at, origin, slow)
    break_it(under)
    failed(running.ended(), 1, "source")
    reload(under, f"0 {MIB << 11} linear {disk} 0")
    at.assert_clean(origin, table)


# the destination


def test_destination_that_fails_writes(at: Scene, origin: str) -> None:
    table = sh("dmsetup", "table", origin)
    half = MIB << 10
    bad = mapper(at, f"0 {half} linear {at.stage.disk(MIB)} 0\n{half} {half} error")
    with at.load(origin):
        ran = at.run("copy", origin, bad, *JOB)
        said = failed(ran, 1, "destination")
        assert said.startswith(f"dmcopy: cannot write {bad} at byte {half << 9}: Input/output")
        at.assert_clean(origin, table)


def test_sigterm_while_a_failure_is_undone_changes_nothing_of_it(
    at: Scene, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is undone to its end, and the job is none that could be gone on with."""
    table = sh("dmsetup", "table", origin)
    half = MIB << 10
    bad = mapper(at, f"0 {half} linear {at.stage.disk(MIB)} 0\n{half} {half} error")
    real = SplicedNow.end

    def end(self: SplicedNow) -> float | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(SplicedNow, "end", end)
    with at.load(origin):
        ran = at.fork("copy", origin, bad, *JOB)
        said = failed(ran, 1, "destination")
        assert said.startswith(f"dmcopy: cannot write {bad} at byte {half << 9}: Input/output")
        at.assert_clean(origin, table)


def test_destination_that_vanishes_in_mid_copy(at: Scene, origin: str, slow: str) -> None:
    table = sh("dmsetup", "table", origin)
    bad = mapper(at, f"0 {sectors(slow)} linear {slow} 0")
    with at.load(origin):
        running = in_mid_copy(at, origin, bad)
        break_it(bad)
        failed(running.ended(), 1, "destination")
        at.assert_clean(origin, table)


def test_destination_that_fails_the_flush(at: Scene, origin: str) -> None:
    """Writes pass, and only what makes them durable fails."""
    table = sh("dmsetup", "table", origin)
    # a target of no size to speak of behind the image: a flush goes to every target
    disk = at.stage.disk(MIB)
    sh("modprobe", "dm-flakey")
    size = MIB << 11
    bad = mapper(
        at, f"0 {size} linear {disk} 0\n{size} 8 flakey {at.stage.disk(1)} 0 0 600 1 error_writes"
    )  # fmt: skip
    at.hold_open(origin)
    ran = at.run("copy", origin, bad, *JOB)
    said = failed(ran, 1, "destination")
    assert said.startswith(f"dmcopy: cannot flush {bad}: Input/output error")
    at.assert_clean(origin, table)


def test_destination_too_small_is_refused_before_anything(at: Scene, origin: str) -> None:
    small = at.stage.disk(MIB // 2)
    at.hold_open(origin)
    before = at.picture(small)
    ran = at.run("copy", origin, small, *JOB)
    assert ran.status == 3, ran
    assert "is too small" in ran.said
    assert at.picture(small) == before


def test_image_that_meets_a_full_file_system(at: Scene, origin: str) -> None:
    table = sh("dmsetup", "table", origin)
    mount = at.stage.filesystem(at.stage.disk(MIB // 2))
    at.hold_open(origin)
    ran = at.run("copy", origin, f"image:{mount}/copy.img", *JOB)
    assert ran.status == 1, ran
    assert ran.event("ended")["kind"] == "destination"
    assert "No space left on device; make room in" in ran.stderr.splitlines()[-1]
    assert os.listdir(mount) == ["lost+found"]
    at.assert_clean(origin, table)


# strangers at the origin


def test_table_replaced_by_a_stranger_is_left_alone(at: Scene, slow: str) -> None:
    disk, other = at.stage.disk(MIB), at.stage.disk(MIB)
    fill(disk)
    origin = at.origin(under=disk)
    strange = sh("dmsetup", "table", at.origin(under=other))
    with at.load(origin):
        running = in_mid_copy(at, origin, slow)
        reload(origin, strange)
        said = failed(running.ended(), 4, "point-in-time-lost")
        assert "was replaced by '0 32768 linear" in said
        at.assert_clean(origin, strange)


def test_foreign_suspend_does_not_disturb_the_copy(at: Scene, origin: str, slow: str) -> None:
    """The swap at the end has to resume the device: the kernel knows no other way."""
    table = sh("dmsetup", "table", origin)
    before = digest(origin)
    at.hold_open(origin)
    running = in_mid_copy(at, origin, slow)
    sh("dmsetup", "suspend", origin)
    at.hurry(slow)
    ran = running.ended()
    assert ran.status == 0, ran
    assert not is_suspended(origin)
    assert digest(slow) == before
    at.assert_clean(origin, table)


def test_killed_worker_in_mid_copy_is_status_5_and_can_go_on(
    at: Scene, origin: str, slow: str
) -> None:
    table = sh("dmsetup", "table", origin)
    with at.load(origin):
        running = in_mid_copy(at, origin, slow)
        os.kill(worker_pid(), signal.SIGKILL)
        ran = running.ended()
        ended = ran.event("ended")
        assert (ran.status, ended["kind"], ended["state"]) == (5, "worker-died", "paused"), ran
        assert ran.said.startswith("dmcopy: the copy worker died (killed by SIGKILL); go on: ")
        assert at.fork("cancel", "fault").status == 0
        at.assert_clean(origin, table)
