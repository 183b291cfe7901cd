"""A RAID1 that is used as it is, copied by its third member, which is split off and put back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from dmcopy.cli.common import Context
from dmcopy.kernel import md_member
from dmcopy.kernel.freeze import freeze
from dmcopy.kernel.mdadm import Mdadm
from dmcopy.stack import md_frozen, md_split
from dmcopy.stack.hold import Instant
from tests.lab import harness, killer, stamp
from tests.lab.harness import nanoseconds
from tests.lab.scene import (
    Ran,
    Scene,
    assert_proved,
    helpers,
    no_helpers,
    scene,
    until,
)
from tests.lab.stage import patiently, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

MEMBER: Final = 24  # MiB
VIA: Final = ("--via", "md-split", "--json", "--name", "splits")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("split") as made:
        yield made


class Mirror:
    """A RAID1 of two with a spare; nothing is laid over it."""

    def __init__(self, at: Scene, *, metadata: str = "1.2", bitmap: str = "none", spares: int = 1):
        disks = [at.stage.disk(MEMBER) for _ in range(2 + spares)]
        self.members = disks
        self.path = at.stage.md(
            *disks[:2], metadata=metadata, spares=disks[2:],
            options=("--assume-clean", f"--bitmap={bitmap}"),
        )  # fmt: skip
        self.md = Path("/sys/block") / os.path.basename(self.path) / "md"

    def read(self, name: str) -> str:
        return (self.md / name).read_text().strip()

    def detail(self) -> list[str]:
        """What ``mdadm --detail`` says, but for when, how often, and whether it is written now."""
        said = sh("mdadm", "--detail", self.path).splitlines()
        return [
            line.replace("active ", "clean ") if line.strip().startswith("State :") else line
            for line in said
            if not line.strip().startswith(("Update Time :", "Events :"))
        ]

    def slowly(self) -> None:
        (self.md / "sync_speed_max").write_text("30")
        (self.md / "sync_speed_min").write_text("1")

    def hurry(self) -> None:
        (self.md / "sync_speed_max").write_text("1000000")
        (self.md / "sync_speed_min").write_text("1000000")

    def is_back(self, before: list[str]) -> None:
        assert self.detail() == before
        assert self.read("sync_action") == "idle"
        assert "DMCOPY" not in sh("dmsetup", "info", "--columns", "--noheadings", "-o", "uuid")
        no_helpers()


def takes_writes(mount: str) -> None:
    """A file system that is frozen would keep this waiting for ever."""
    done = sh("timeout", "5", "dd", "if=/dev/zero", f"of={mount}/probe", "bs=4k", "count=1",
              "conv=fsync", "status=none")  # fmt: skip
    assert done == ""


def no_records(at: Scene) -> None:
    assert not list((at.state / "md-split").glob("[!.]*"))


@pytest.mark.parametrize(
    ("metadata", "bitmap"),
    [("1.2", "internal"), ("0.90", "none")],
)
def test_files_in_the_copy_of_a_mounted_mirror_are_those_of_begin_time(
    at: Scene, metadata: str, bitmap: str
) -> None:
    mirror = Mirror(at, metadata=metadata, bitmap=bitmap)
    mount = at.stage.filesystem(mirror.path)
    before = mirror.detail()
    log, image = at.folder / "files.log", str(at.folder / "image")
    with harness.writing_files(mount, log):
        ran = at.fork("copy", mirror.path, f"image:{image}", *VIA, "--verify")
        after = len(log.read_text().splitlines())
        harness.until(lambda: len(log.read_text().splitlines()) > after + 3)
    assert ran.status == 0, ran
    assert ran.event("planned")["provider"] == "md-split"
    begun = ran.event("begun")
    (hold,) = ran.of_kind("hold")
    assert (hold["reason"], hold["seconds"]) == ("begin", begun["hold_seconds"][0])
    assert 0 < hold["seconds"] < 1, "measured"
    print(f"held for {hold['seconds'] * 1000:.2f} ms")
    mirror.is_back(before)
    no_records(at)
    sh("e2fsck", "-fn", image)
    t0 = nanoseconds(begun["begin_time"])
    with harness.mounted(at.stage, image, "ro,noload,loop") as copy:
        safe, later = harness.prove_files(
            str(copy), log, t0, t0 + round(begun["hold_seconds"][0] * 1e9)
        )
    assert safe
    assert later
    takes_writes(mount)


def raw_copy(at: Scene, mirror: Mirror, patch: Callable[[], Context | None] | None) -> Ran:
    return at.fork("copy", mirror.path, f"image:{at.folder}/image", *VIA, prepare=patch)


def test_split_member_is_the_array_as_of_begin_time(at: Scene) -> None:
    mirror = Mirror(at)
    stamp.fill(mirror.path, seed=1)
    before = mirror.detail()
    with at.load(mirror.path, pause=0.001) as log:
        ran = raw_copy(at, mirror, None)
    assert_proved(ran, log, str(at.folder / "image"))
    mirror.is_back(before)


def test_member_that_is_failed_too_late_broken_gives_a_wrong_image(at: Scene) -> None:
    mirror = Mirror(at)
    stamp.fill(mirror.path, seed=1)

    def late() -> None:
        def hold(_self: object, act: Callable[[], None]) -> Instant:
            begin = time.time_ns()
            time.sleep(1.0)
            act()
            return Instant(begin_ns=begin, held=0.0)

        setattr(md_frozen.FrozenHold, "__call__", hold)  # noqa: B010 (broken on purpose)

    with at.load(mirror.path, pause=0.001) as log:
        ran = raw_copy(at, mirror, late)
    assert ran.status == 0, ran
    begin = nanoseconds(ran.event("begun")["begin_time"])
    verdict = stamp.check(str(at.folder / "image"), log, 1, t0=begin, t1=begin)
    assert not verdict.is_good


# refusals


def no_spare(at: Scene) -> tuple[str, str]:
    return Mirror(at, spares=0).path, "has no spare"


def two_spares(at: Scene) -> tuple[str, str]:
    return Mirror(at, spares=2).path, "has 2 spares"


def raid5(at: Scene) -> tuple[str, str]:
    return at.stage.md(*(at.stage.disk(8) for _ in range(3)), level=5), "is a raid5"


def no_array(at: Scene) -> tuple[str, str]:
    return at.stage.disk(8), "is no md array"


@pytest.mark.parametrize("kind", [no_spare, two_spares, raid5, no_array])
def test_what_cannot_be_split_is_refused(
    at: Scene, kind: Callable[[Scene], tuple[str, str]]
) -> None:
    path, why = kind(at)
    before = at.picture(path)
    ran = at.fork("copy", path, f"image:{at.folder}/image", *VIA)
    assert ran.status == 3, ran
    assert why in ran.said
    assert at.picture(path) == before


# ends that were not meant


def test_interrupted_anywhere_everything_is_undone(at: Scene) -> None:
    mirror = Mirror(at)
    mount = at.stage.filesystem(mirror.path)
    before = mirror.detail()
    image = at.folder / "image"
    mirror.slowly()
    running = at.start("copy", mirror.path, f"image:{image}", *VIA)
    assert running.wait_for("waiting")["reason"] == "recover"
    assert at.fork("cancel", "splits").status == 0
    ran = running.ended()
    assert (ran.status, ran.event("ended")["state"]) == (5, "cancelled"), ran
    mirror.hurry()
    mirror.is_back(before)

    running = at.start("copy", mirror.path, f"image:{image}", *VIA, "--rate", "2m")
    running.wait_for("begun")
    running.wait_for("progress")
    running.kill(signal.SIGINT)
    ran = running.ended()
    assert (ran.status, ran.event("ended")["state"]) == (5, "cancelled"), ran
    mirror.is_back(before)
    assert not list(at.folder.glob("image*"))

    bad = at.stage.dm(f"0 {MEMBER << 11} error")
    ran = at.fork("copy", mirror.path, f"block:{bad}", *VIA)
    assert ran.status == 1, ran
    mirror.is_back(before)
    no_records(at)
    takes_writes(mount)


def test_file_system_that_does_not_freeze_in_time_is_thawed(at: Scene) -> None:
    mirror = Mirror(at)
    mount = at.stage.filesystem(mirror.path)
    before = mirror.detail()

    def slow() -> None:
        def slowly(fd: int) -> None:
            freeze(fd)
            time.sleep(1.0)

        vars(md_frozen)["freeze"] = slowly

    ran = at.fork(
        "copy", mirror.path, f"image:{at.folder}/image", *VIA, "--hold-limit", "0.2", prepare=slow
    )
    assert ran.status == 1, ran
    assert "did not freeze within 0.2 s" in ran.stderr
    mirror.is_back(before)
    no_records(at)
    takes_writes(mount)


def kill_helpers() -> None:
    """Kill the dead man first: he is to have no say."""
    for pid, name in helpers().items():
        if name == "dmcopy.stack.md_thaw":
            os.kill(pid, signal.SIGKILL)
    killer.kill_both()


def armed(at: Scene, where: str, blow: Callable[[], None]) -> Callable[[], None]:
    """Give what arms a fork: it dies at *where*."""

    def arm() -> None:
        fuse = killer.Fuse(where, blow, at.folder / "note")
        owners: tuple[tuple[object, str, str], ...] = (
            (Mdadm, "Mdadm", "grow"), (Mdadm, "Mdadm", "remove"), (Mdadm, "Mdadm", "add_spare"),
            (md_member, "md_member", "fail"), (md_split, "md_split", "write_record"),
            (md_split.ShowLeg, "ShowLeg", "do"), (md_split.SplitOff, "SplitOff", "do"),
        )  # fmt: skip
        for owner, word, name in owners:
            setattr(owner, name, killer._wrapped(fuse, f"{word}.{name}", getattr(owner, name)))

    return arm


PLACES: Final = (
    "after md_split.write_record", "after md_member.fail", "after Mdadm.add_spare",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_rescue_puts_it_back(at: Scene, place: str) -> None:
    mirror = Mirror(at)
    mount = at.stage.filesystem(mirror.path)
    before = mirror.detail()
    ran = at.fork(
        "copy", mirror.path, f"image:{at.folder}/image", *VIA,
        prepare=armed(at, place, killer.kill_both),
    )  # fmt: skip
    assert ran.status == -signal.SIGKILL, ran
    assert place in (at.folder / "note").read_text()
    takes_writes(mount)
    no_helpers()
    rescued = at.fork("rescue")
    assert rescued.status == 0, rescued
    mirror.is_back(before)
    no_records(at)


def test_killed_with_its_dead_man_rescue_thaws(at: Scene) -> None:
    mirror = Mirror(at)
    mount = at.stage.filesystem(mirror.path)
    before = mirror.detail()
    ran = at.fork(
        "copy", mirror.path, f"image:{at.folder}/image", *VIA,
        prepare=armed(at, "before md_member.fail", kill_helpers),
    )  # fmt: skip
    assert ran.status == -signal.SIGKILL, ran
    assert "a member that is split off" in at.fork("rescue", "--dry-run").stdout
    rescued = at.fork("rescue")
    assert rescued.status == 0, rescued
    assert f"thawed {mount}" in rescued.stdout
    takes_writes(mount)
    mirror.is_back(before)
    no_records(at)
    assert at.fork("resume", "splits").status == 3, "it is over"
    assert at.fork("rescue").stdout == "nothing to rescue\n"


def test_member_that_the_array_needs_meanwhile_stays_one(at: Scene) -> None:
    mirror = Mirror(at)
    ran = at.fork(
        "copy", mirror.path, f"image:{at.folder}/image", *VIA,
        prepare=armed(at, "before SplitOff.do", killer.kill_both),
    )  # fmt: skip
    assert ran.status == -signal.SIGKILL, ran
    sh("mdadm", "--quiet", mirror.path, "--fail", mirror.members[0])
    rescued = at.fork("rescue")
    assert rescued.status == 0, rescued
    assert mirror.read("raid_disks") == "2"
    assert mirror.read("degraded") == "0", "the third member has taken the place of the first"
    no_records(at)


def test_member_that_fails_while_it_is_copied_gets_the_spare_at_the_end(at: Scene) -> None:
    mirror = Mirror(at)
    stamp.fill(mirror.path, seed=1)
    image = str(at.folder / "image")
    with at.load(mirror.path) as log:
        running = at.start("copy", mirror.path, f"image:{image}", *VIA, "--rate", "8m")
        running.wait_for("begun")
        running.wait_for("progress")
        sh("mdadm", "--quiet", mirror.path, "--fail", mirror.members[0])
        ran = running.ended()
    assert_proved(ran, log, image)
    until(lambda: mirror.read("degraded") == "0", "the spare takes its place")
    no_records(at)


def test_spare_that_holds_something_else_by_now_is_left_alone(at: Scene) -> None:
    mirror = Mirror(at)
    ran = at.fork(
        "copy", mirror.path, f"image:{at.folder}/image", *VIA,
        prepare=armed(at, "after Mdadm.remove", killer.kill_both),
    )  # fmt: skip
    assert ran.status == -signal.SIGKILL, ran
    spare = mirror.members[2]
    sh("mdadm", "--zero-superblock", spare)
    sh("mkfs.ext4", "-q", "-F", spare)
    rescued = at.fork("rescue")
    assert rescued.status == 6, rescued
    assert "holds something else now, and is left alone" in rescued.stderr
    assert mirror.read("raid_disks") == "2"
    sh("wipefs", "--all", "--quiet", spare)
    patiently("mdadm", "--quiet", mirror.path, "--add-spare", spare)
    assert at.fork("rescue").status == 0
    no_records(at)
