"""RAID arrays under the source: whole, degraded, resyncing, and losing a member in mid-copy.

The witness is the load that proves itself: what it wrote, and when, is in its log.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab import stamp
from tests.lab.harness import nanoseconds
from tests.lab.scene import (
    Ran,
    Scene,
    assert_proved,
    helpers,
    no_helpers,
    reload,
    scene,
    until,
)
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

MEMBER: Final = 10  # MiB
MEMBERS: Final = {1: 2, 5: 4, 6: 4, 10: 4}
SLOW: Final = "30"  # KiB a second that a resync may move: none of these ends during a copy
SYNCING: Final = ("resync", "recover")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("md") as made:
        yield made


class Raid:
    """An array with stamps all over it, and a linear device on top: what ``dmcopy wrap`` makes."""

    def __init__(
        self, at: Scene, level: int, *, clean: bool = True, spares: int = 0, over_dm: bool = False
    ) -> None:
        disks = [at.stage.disk(MEMBER) for _ in range(MEMBERS[level] + spares)]
        self.members = [at.stage.linear(disk) for disk in disks] if over_dm else disks
        split = MEMBERS[level]
        chunk = [] if level == 1 else ["--chunk=64"]
        self.path = at.stage.md(
            *self.members[:split], level=level, spares=self.members[split:],
            options=[*chunk, "--bitmap=none", "--assume-clean"],
        )  # fmt: skip
        stamp.fill(self.path, seed=1)
        self.md = Path("/sys/block") / os.path.basename(self.path) / "md"
        if not clean:
            self.resync()
        self.top = at.stage.linear(self.path)
        self.table = sh("dmsetup", "table", self.top)

    def read(self, name: str) -> str:
        return (self.md / name).read_text().strip()

    def write(self, name: str, text: str) -> None:
        (self.md / name).write_text(text)

    @property
    def is_syncing(self) -> bool:
        return self.read("sync_action") in SYNCING

    def resync(self, speed: str = SLOW) -> None:
        """Stop it and put it together as if it had not been stopped cleanly."""
        sh("mdadm", "--stop", "--quiet", self.path)
        Path("/proc/sys/dev/raid/speed_limit_max").write_text(speed)
        Path("/proc/sys/dev/raid/speed_limit_min").write_text("1")
        sh("mdadm", "--assemble", "--run", "--quiet", "--update=resync", self.path, *self.members)
        sh("mdadm", "--readwrite", self.path)  # else md begins with the first write
        until(lambda: self.is_syncing, "it resyncs")

    def hurry(self) -> None:
        self.write("sync_speed_max", "1000000")
        self.write("sync_speed_min", "1000000")

    def fail(self, number: int) -> None:
        sh("mdadm", "--quiet", self.path, "--fail", self.members[number])

    def detail(self) -> list[str]:
        """What ``mdadm --detail`` says, but for what is different a second later anyway."""
        said = sh("mdadm", "--detail", self.path).splitlines()
        odd = ("Update Time :", "Events :", "State :", "Resync Status :", "Rebuild Status :")
        return [line for line in said if not line.strip().startswith(odd)]


@pytest.fixture(autouse=True)
def _speed() -> Iterator[None]:
    sh("modprobe", "md-mod")
    folder = Path("/proc/sys/dev/raid")
    before = {name: (folder / name).read_text() for name in ("speed_limit_min", "speed_limit_max")}
    yield
    for name, text in before.items():
        (folder / name).write_text(text)


def copied(at: Scene, raid: Raid, *options: str) -> tuple[Ran, Path, str]:
    """Copy it under the load."""
    image = str(at.folder / "image")
    with at.load(raid.top) as log:
        ran = at.fork("copy", raid.top, f"image:{image}", "--cow", "16m", "--json", *options)
    return ran, log, image


def warnings(ran: Ran) -> str:
    return "\n".join(event["message"] for event in ran.of_kind("warning"))


@pytest.mark.parametrize("level", MEMBERS)
def test_array_is_copied_under_load(at: Scene, level: int) -> None:
    raid = Raid(at, level)
    before = raid.detail()
    ran, log, image = copied(at, raid, "--chunk", "64k", "--segment", "192k")
    assert_proved(ran, log, image)
    assert raid.detail() == before
    (said,) = ran.event("ended")["md"]
    assert (said["array"], said["level"]) == (raid.path, f"raid{level}")
    assert said["degraded"] == said["degraded_at_begin"] == 0
    assert said["sync_action"] == "idle"
    assert said["resync"] is None
    assert "/dev/md" not in warnings(ran)
    at.assert_back(raid.top, raid.table)


@pytest.mark.parametrize("level", [5])
def test_degraded_array_is_copied_with_a_warning(at: Scene, level: int) -> None:
    raid = Raid(at, level)
    raid.fail(0)
    ran, log, image = copied(at, raid)
    assert_proved(ran, log, image)
    assert "is degraded: 1 of its" in warnings(ran)
    assert ran.event("ended")["md"][0]["degraded_at_begin"] == 1


@pytest.mark.parametrize("level", [1, 5])
def test_array_is_copied_while_it_resyncs(at: Scene, level: int) -> None:
    raid = Raid(at, level, clean=False)
    ran, log, image = copied(at, raid, "--md-resync", "ignore")
    assert raid.is_syncing, "else nothing was seen"
    assert_proved(ran, log, image)
    assert ran.event("ended")["md"][0]["resync"] == "ignored"
    may_differ = level in (1, 10)
    assert ("may differ" in warnings(ran)) == may_differ
    raid.hurry()


@pytest.mark.parametrize(("level", "how"), [(1, "mdadm"), (6, "error")])
def test_member_that_fails_in_mid_copy_changes_nothing_in_the_image(
    at: Scene, level: int, how: str
) -> None:
    raid = Raid(at, level, over_dm=True)
    image = str(at.folder / "image")
    with at.load(raid.top) as log:
        running = at.start(
            "copy", raid.top, f"image:{image}", "--cow", "16m", "--json",
            "--rate", "1m", "--segment", "256k", "--name", "fails",
        )  # fmt: skip
        running.wait_for("begun")
        running.wait_for("progress")
        if how == "mdadm":
            raid.fail(1)
        else:
            name = os.path.basename(raid.members[1])
            reload(name, f"0 {MEMBER << 11} error")
        assert at.fork("set", "fails", "rate=none").status == 0
        ran = running.ended()
    assert_proved(ran, log, image)
    said = ran.event("ended")["md"][0]
    assert (said["degraded_at_begin"], said["degraded"]) == (0, 1)
    assert warnings(ran).count("is degraded") == 1, "told once"


def test_mirror_that_resyncs_is_waited_for(at: Scene) -> None:
    raid = Raid(at, 1, clean=False)
    image = str(at.folder / "image")
    with at.load(raid.top) as log:
        running = at.start("copy", raid.top, f"image:{image}", "--cow", "16m", "--json")
        said = running.wait_for("waiting")
        assert (said["device"], said["reason"]) == (raid.path, "resync")
        raid.hurry()
        until(lambda: not raid.is_syncing, "it is done")
        done = time.time_ns()
        ran = running.ended()
    assert_proved(ran, log, image)
    assert nanoseconds(ran.event("begun")["begin_time"]) > done - 10**9
    assert ran.event("ended")["md"][0]["resync"] == "waited"
    assert "/dev/md" not in warnings(ran)


def test_waiting_for_a_resync_can_be_interrupted_and_cancelled(at: Scene) -> None:
    raid = Raid(at, 5, clean=False)
    for end in ("signal", "cancel"):
        image = str(at.folder / "image")
        running = at.start(
            "copy", raid.top, f"image:{image}", "--md-resync", "wait", "--json", "--name", "waits"
        )
        running.wait_for("waiting")
        if end == "signal":
            running.kill(signal.SIGINT)
        else:
            assert at.fork("cancel", "waits").status == 0
        ran = running.ended()
        assert ran.status == 5, ran
        assert ran.event("ended")["state"] == "cancelled"
        at.assert_back(raid.top, raid.table)
    assert raid.is_syncing
    raid.hurry()


def paused_copy(at: Scene, *options: str) -> list[str]:
    return ["--md-resync", "pause", "--json", "--name", "pauses", "--cow", "16m", *options]


@pytest.mark.parametrize("level", [5])
def test_resync_is_paused_and_goes_on_at_the_end(at: Scene, level: int) -> None:
    raid = Raid(at, level, clean=False)
    before = raid.detail()
    image = str(at.folder / "image")
    with at.load(raid.top) as log:
        running = at.start("copy", raid.top, f"image:{image}", *paused_copy(at, "--rate", "4m"))
        running.wait_for("begun")
        assert raid.read("sync_action") == "frozen"
        while running.wait_for("progress")["bytes_done"] < (4 << 20):
            assert raid.read("sync_action") == "frozen"
        assert at.fork("set", "pauses", "rate=none").status == 0
        ran = running.ended()
    until(lambda: raid.is_syncing, "it goes on", patience=2)
    assert_proved(ran, log, image)
    assert ran.event("ended")["md"][0]["resync"] == "paused resync"
    assert [line for line in raid.detail() if "Consistency" not in line] == [
        line for line in before if "Consistency" not in line
    ]
    assert not list((at.folder / "runtime/md").glob("[!.]*"))
    no_helpers()
    raid.hurry()


def test_recovery_that_is_paused_goes_on_also_when_a_copy_fails(at: Scene) -> None:
    raid = Raid(at, 5, spares=1)
    raid.write("sync_speed_max", SLOW)
    raid.write("sync_speed_min", "1")
    raid.fail(0)
    until(lambda: raid.read("sync_action") == "recover", "it recovers")
    bad = at.stage.dm(f"0 {30 << 11} error")
    ran = at.fork("copy", raid.top, f"block:{bad}", *paused_copy(at))
    assert ran.status == 1, ran
    until(lambda: raid.read("sync_action") == "recover", "it goes on", patience=2)
    raid.hurry()


def test_check_that_is_paused_goes_on(at: Scene) -> None:
    raid = Raid(at, 6)
    raid.write("sync_speed_max", SLOW)
    raid.write("sync_speed_min", "1")
    raid.write("sync_action", "check")
    ran = at.fork("copy", raid.top, f"image:{at.folder}/image", *paused_copy(at))
    assert ran.status == 0, ran
    assert ran.event("ended")["md"][0]["resync"] == "paused check"
    until(lambda: raid.read("sync_action") == "check", "it goes on", patience=2)
    raid.hurry()


def test_what_an_administrator_froze_stays_so(at: Scene) -> None:
    raid = Raid(at, 1, clean=False)
    raid.write("sync_action", "frozen")
    ran = at.fork("copy", raid.top, f"image:{at.folder}/image", *paused_copy(at))
    assert ran.status == 0, ran
    assert raid.read("sync_action") == "frozen"
    assert "may differ" in warnings(ran)
    raid.write("sync_action", "idle")
    raid.hurry()


def keepers() -> list[int]:
    return [pid for pid, name in helpers().items() if name == "dmcopy.stack.md_keeper"]


def test_killed_while_it_pauses_a_resync_goes_on(at: Scene) -> None:
    raid = Raid(at, 1, clean=False)
    image = str(at.folder / "image")
    with at.load(raid.top) as log:
        running = at.start(
            "copy", raid.top, f"image:{image}", *paused_copy(at, "--rate", "2m", "--batch", "1m")
        )
        running.wait_for("begun")
        assert raid.read("sync_action") == "frozen"
        running.kill()
        begun = running.ended()
        until(lambda: raid.is_syncing, "the dead man has it go on", patience=5)
        no_helpers()

        running = at.start("resume", "pauses", "--json")
        running.wait_for("progress")
        assert raid.read("sync_action") == "frozen", "a job that goes on pauses it again"
        (keeper,) = keepers()
        os.kill(keeper, signal.SIGKILL)
        running.kill()
        running.ended()
        no_helpers()
        assert raid.read("sync_action") == "frozen", "nobody is there who could"

        dry = at.fork("rescue", "--dry-run")
        assert "the resync of" in dry.stdout
        assert raid.read("sync_action") == "frozen"
        rescued = at.fork("rescue")
        assert rescued.status == 0, rescued
        assert "started the resync of" in rescued.stdout
        until(lambda: raid.is_syncing, "rescue has it go on", patience=2)

        ran = at.fork("resume", "pauses", "--json")
    assert ran.status == 0, ran
    begin = nanoseconds(begun.event("begun")["begin_time"])
    end = begin + int(begun.event("begun")["hold_seconds"][0] * 1e9)
    verdict = stamp.check(image, log, 1, t0=begin, t1=end)
    assert verdict.is_good, verdict.wrong
    until(lambda: raid.is_syncing, "it goes on at the end", patience=2)
    raid.hurry()


def test_paused_copy_pauses_no_resync(at: Scene) -> None:
    raid = Raid(at, 1, clean=False)
    running = at.start(
        "copy", raid.top, f"image:{at.folder}/image", *paused_copy(at, "--hold-start")
    )
    running.wait_for("paused")
    until(lambda: raid.is_syncing, "it goes on while nothing is copied", patience=2)
    assert at.fork("set", "pauses", "rate=1m").status == 0
    assert at.fork("resume", "pauses").status == 0
    until(lambda: raid.read("sync_action") == "frozen", "and not while it is", patience=2)
    assert at.fork("set", "pauses", "rate=none").status == 0
    assert running.ended().status == 0
    until(lambda: raid.is_syncing, "it goes on at the end", patience=2)
    raid.hurry()


def test_members_that_differ_are_told(at: Scene) -> None:
    raid = Raid(at, 1)
    sh("dd", "if=/dev/urandom", f"of={raid.members[1]}", "bs=64k", "seek=20", "count=1",
       "oflag=direct", "conv=notrunc")  # fmt: skip
    raid.write("sync_action", "check")
    until(lambda: raid.read("sync_action") == "idle", "it is checked")
    ran = at.fork("copy", raid.top, f"image:{at.folder}/image", "--cow", "16m", "--json")
    assert ran.status == 0, ran
    assert "the members of" in warnings(ran)
    assert "mismatch_cnt 128" in warnings(ran)
    assert ran.event("ended")["md"][0]["mismatches"] == 128


def test_segments_begin_with_a_stripe_where_that_can_be(at: Scene) -> None:
    raid = Raid(at, 5)
    stripe = 3 * (64 << 10)
    assert (raid.md.parent / "queue/optimal_io_size").read_text().strip() == str(stripe)

    def segment(source: str, *options: str) -> int:
        ran = at.fork("plan", source, f"image:{at.folder}/image", "--json", *options)
        return int(ran.event("planned")["segment_bytes"])

    splice = ("--cow", "16m")
    assert segment(raid.top, *splice) == 22 * stripe
    assert segment(raid.top, *splice, "--segment", "64k") == stripe
    assert segment(raid.top, *splice, "--chunk", "256k", "--segment", "1m") == 8 * stripe
    length = 8 << 11
    with_stripe = at.stage.dm(f"0 {length} linear {raid.path} {5 * stripe >> 9}")
    assert segment(with_stripe, "--segment", "64k") == stripe
    between = at.stage.dm(f"0 {length} linear {raid.path} 2048")
    assert segment(between, "--segment", "64k") == 64 << 10


@pytest.mark.parametrize("offset", [2049])
def test_what_lies_on_an_array_anywhere_is_copied(at: Scene, offset: int) -> None:
    raid = Raid(at, 5)
    top = at.stage.dm(f"0 {8 << 11} linear {raid.path} {offset}")
    image = str(at.folder / "image")
    stamp.fill(top, seed=1)
    with at.load(top) as log:
        ran = at.fork("copy", top, f"image:{image}", "--cow", "16m", "--json", "--segment", "64k")
    assert_proved(ran, log, image)


@pytest.mark.parametrize("level", [1, 5])
def test_mounted_array_is_refused_with_the_ways_out(at: Scene, level: int) -> None:
    disks = [at.stage.disk(MEMBER) for _ in range(MEMBERS[level])]
    array = at.stage.md(*disks, level=level)
    at.stage.filesystem(array)
    before = at.picture()  # without the array's content: ext4 writes to it by itself
    ran = at.fork("copy", array, f"image:{at.folder}/image")
    assert ran.status == 3
    assert "is mounted on" in ran.said or "is in use (mounted on" in ran.said
    assert f"dmcopy wrap {array} NAME" in ran.said
    assert ("--via md-split" in ran.said) == (level == 1)
    assert at.picture() == before
