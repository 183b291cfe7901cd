"""What a job is told after the machine was started again, where it cannot go on.

The boot is played: all devices are taken away by the kernel's own tools, and the boot id changes.
Where it can go on is shown by real power cuts (tests/cuts).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.lab import harness
from tests.lab.scene import Ran, Scene, helpers, scene
from tests.lab.stage import patiently, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

MIB = 1 << 20
SIZE = 16
BOOT_ID = "/proc/sys/kernel/random/boot_id"
JOB = ("--name", "job", "--json", "--segment", "256k", "--batch", "1m")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("boot") as here:
        yield here


def interrupted(at: Scene, origin: str) -> None:
    harness.write_device(origin, harness.pattern(SIZE * MIB))
    running = at.start("copy", origin, at.slow(at.stage.disk(SIZE), write_ms=60), *JOB)
    while running.wait_for("progress")["bytes_done"] < 3 * MIB:
        pass
    running.kill()
    running.ended()
    harness.until(lambda: not helpers())


def another_boot(at: Scene) -> None:
    file = at.folder / "boot_id"
    file.write_text(f"{uuid.uuid4()}\n")
    sh("mount", "--bind", str(file), BOOT_ID)
    at.stage.later(patiently, "umount", BOOT_ID)


def power_off(origin: str) -> None:
    """Take away what a power cut would."""
    table = sh("dmsetup", "table", "dmcopy-job-source")
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", origin)
    sh("dmsetup", "load", origin, "--table", table)
    sh("dmsetup", "resume", "--noudevsync", origin)
    for role in ("snap", "cow", "source"):
        sh("dmsetup", "remove", "--retry", f"dmcopy-job-{role}")


def lost(at: Scene) -> str:
    ran: Ran = at.run("resume", "job", "--json")
    assert ran.status == 4, ran
    assert "begin anew: dmcopy copy" in ran.said
    assert at.fork("show", "job").stdout.splitlines()[1].split() == ["state", "failed"]
    return ran.said


def test_source_on_a_loop_device_cannot_be_trusted_after_a_boot(at: Scene) -> None:
    origin = at.origin(SIZE)
    fd = os.open(origin, os.O_RDONLY)
    interrupted(at, origin)
    os.close(fd)
    power_off(origin)
    another_boot(at)
    size = sh("dmsetup", "table", origin)
    sh("dmsetup", "remove", "--retry", os.path.basename(origin))
    sh("dmsetup", "create", os.path.basename(origin), "--table", size)
    assert "cannot go on" in at.fork("show", "job").stdout
    said = lost(at)
    assert "whether its file was written after the machine was started cannot be known" in said
    at.assert_clean(origin, size)


def test_origin_that_is_not_there_yet_is_waited_for(at: Scene) -> None:
    origin = at.origin(SIZE)
    fd = os.open(origin, os.O_RDONLY)
    interrupted(at, origin)
    os.close(fd)
    power_off(origin)
    table = sh("dmsetup", "table", origin)
    another_boot(at)
    sh("dmsetup", "remove", "--retry", os.path.basename(origin))
    kept = at.fork("rescue")
    assert "job: was interrupted and is kept" in kept.stdout, "it may come yet"
    assert "but not now" in at.fork("show", "job").stdout
    ran = at.run("resume", "job", "--json")
    assert ran.status == 3, ran
    assert f"dmsetup create {os.path.basename(origin)} --table '{table}'" in ran.said
    sh("dmsetup", "create", os.path.basename(origin), "--table", table)
    assert at.run("cancel", "job").stdout.splitlines()[-1] == "job: cancelled"
    at.assert_clean(origin, table)


def test_idle_source_is_lost_with_the_boot(at: Scene) -> None:
    disk = at.stage.disk(SIZE)
    interrupted(at, disk)
    another_boot(at)
    assert "what happened before that is not known" in lost(at)
