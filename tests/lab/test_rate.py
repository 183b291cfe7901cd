"""How fast a copy may go, measured by the kernel's count of what it wrote to the destination."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab import harness
from tests.lab.scene import Running, Scene, reload, scene
from tests.lab.stage import sh
from tests.lab.test_resume import bytes_written

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

MIB = 1 << 20
SIZE = 32
LARGE = 192  # not done while it is looked at


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("rate") as here:
        yield here


def origin(at: Scene) -> str:
    path = at.origin(SIZE)
    harness.write_device(path, harness.pattern(SIZE * MIB))
    return path


def start(at: Scene, source: str, destination: str, name: str, *options: str) -> Running:
    running = at.start(
        "copy", source, destination, "--name", name, "--json", "--segment", "256k",
        "--cow", "auto", *options,
    )  # fmt: skip
    at.hold_open(source)
    running.wait_for("begun")
    return running


def speed(seconds: float, *destinations: str) -> float:
    """Give how fast the destinations are written now, together, in MiB a second."""
    before, started = sum(map(bytes_written, destinations)), time.monotonic()
    time.sleep(seconds)
    done = sum(map(bytes_written, destinations)) - before
    return done / (time.monotonic() - started) / MIB


def test_rate_is_kept_and_can_be_changed_while_it_runs(at: Scene) -> None:
    source, target = origin(at), at.stage.disk(SIZE)
    at.hold_open(source)
    running = start(at, source, target, "job", "--rate", "1m")
    time.sleep(0.5)
    assert speed(3, target) == pytest.approx(1, rel=0.25)
    assert at.run("set", "job", "rate=2MiB/s").status == 0
    time.sleep(0.5)
    assert speed(2.5, target) == pytest.approx(2, rel=0.25)
    wrong = at.fork("set", "job", "rate=fast")
    assert (wrong.status, "'fast' is not a rate" in wrong.said) == (2, True)
    assert at.run("set", "job", "rate=none").status == 0
    ran = running.ended()
    assert ran.status == 0, ran
    assert harness.differing(harness.read_device(target), harness.pattern(SIZE * MIB)) == []


def test_cap_of_the_host_holds_for_all_jobs_together(at: Scene) -> None:
    one, other = at.stage.disk(SIZE), at.stage.disk(SIZE)
    assert at.run("set", "--host", "rate=3m").status == 0
    first = start(at, origin(at), one, "first")
    time.sleep(0.5)
    assert speed(2, one) == pytest.approx(3, rel=0.25)
    second = start(at, origin(at), other, "second")
    time.sleep(0.5)
    assert speed(4, one, other) == pytest.approx(3, rel=0.25)
    assert bytes_written(other) > MIB, "both get their share"
    assert at.run("set", "--host", "rate=none").status == 0
    for running in (first, second):
        assert running.ended().status == 0


def test_auto_backs_off_while_the_sources_writes_are_slow(at: Scene) -> None:
    # as fast as it goes it takes some ten seconds, however fast the machine is
    disk, target = at.stage.disk(LARGE), at.slow(at.stage.disk(LARGE), write_ms=10)
    under = at.slow(disk)
    source = at.origin(under=under)
    harness.write_device(source, harness.pattern(MIB) * LARGE)
    size = sh("blockdev", "--getsz", disk)
    with at.load(source, pause=0.01, max_blocks=1):
        running = start(at, source, target, "job", "--rate", "auto")
        time.sleep(2)
        before = speed(1, target)
        # only what lies behind us on the source gets slower: the load's writes, not our reads
        reload(under, f"0 {size} delay {disk} 0 0 {disk} 0 60")
        time.sleep(3)
        slowed = speed(1.5, target)
        print(f"{before:.1f} MiB/s, then {slowed:.1f}")
        assert running.process.poll() is None, "it was too quick"
        assert slowed < 0.6 * before
        assert slowed > 0.2, "it always goes on"
        reload(under, f"0 {size} delay {disk} 0 0 {disk} 0 0")
        assert at.run("cancel", "job").status == 0
        running.ended()
