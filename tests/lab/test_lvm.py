"""Logical volumes in use: LVM's snapshot, our instant, and LVM's view as it was.

The witness is the kernel's own snapshot device, or the load that proves itself.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.cli.common import Context
from dmcopy.errors import HoldLimitExceeded
from dmcopy.kernel import lvm_lock
from dmcopy.stack import lvm_begin
from tests.lab import harness, killer, stamp
from tests.lab.harness import assert_copied, differing, read_device, run_copy
from tests.lab.scene import Ran, Scene, assert_proved, kill_all, reload, scene, timed_write
from tests.lab.stage import sh
from tests.lab.volumes import MIB, Volumes, differences, filled, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("lvm") as made:
        yield made


@pytest.fixture
def volumes(at: Scene) -> Volumes:
    return Volumes(at.stage)


def behind(at: Scene, disk: str) -> str:
    """Lay a delay of nothing over *disk*, so that its PV label is not to be seen on the disk."""
    size = harness.sectors_of(disk) - 8
    return at.stage.dm(f"0 {size} delay {disk} 8 0 {disk} 8 0")


# under load


@pytest.mark.parametrize(
    ("kind", "load", "how"),
    [
        ("linear", "fio", "--chunk 4k --segment 256k --batch 1m"),
        ("linear", "stamp", "--batch 1m --order hot"),
        ("linear", "stamp", "--gate segment --segment 1m"),
        ("striped", "stamp", "--chunk 16k --segment 1m --batch 1m"),
        ("raid1", "stamp", "--segment 1m --batch 1m"),
        ("raid5", "fio", "--no-retire"),
        ("raid6", "stamp", ""),
        ("raid10", "stamp", ""),
    ],
)
def test_volume_under_load_is_the_kernels_image(
    at: Scene, volumes: Volumes, kind: str, load: str, how: str
) -> None:
    mib = 9 if kind == "raid6" else 8  # whole stripes
    path = volumes.lv(kind=kind, mib=mib)
    stamp.fill(path, seed=3, processes=2)
    before = volumes.picture()
    target, log = at.stage.disk(mib), at.folder / "log"
    words = [*how.split(), "--verify"]
    vg = volumes.vg
    if load == "fio":
        with harness.fio(path, path):
            copied = run_copy(str(at.folder), path, target, *words, vg=vg)
    else:
        with harness.stamping(path, log, seed=3):
            copied = run_copy(str(at.folder), path, target, *words, vg=vg)
        verdict = stamp.check(target, log, 3, t0=copied.t0, t1=copied.t1)
        assert verdict.wrong == []
    assert_copied(copied, read_device(target))
    assert copied.event("planned")["provider"] == "lvm"
    assert differences(before, volumes.picture()) == []


def test_instant_of_lvm_itself_broken_gives_another_begin_time(at: Scene, volumes: Volumes) -> None:
    """Without the store begun anew the image is of some moment while lvcreate ran."""
    path = volumes.lv()
    filled(path)
    volumes.used(path)
    marker = b"written before begin time".ljust(4096, b".")

    def prepare() -> Context | None:
        real = lvm_begin.LvmInstant._alone

        def late(self: lvm_begin.LvmInstant, part: object) -> object:
            harness.write_device(path, marker, 65536)  # lvcreate is over, the instant is not
            return real(self, part)  # type: ignore[arg-type]

        lvm_begin.LvmInstant._alone = late  # type: ignore[method-assign, assignment]
        return None

    def prepare_broken() -> Context | None:
        prepare()
        lvm_begin.LvmInstant._arm = lambda self: None  # type: ignore[method-assign]
        return None

    image = at.folder / "copy.img"
    words = ("copy", path, f"image:{image}", "--verify", "--json")
    for name, setting, is_in in (("right", prepare, True), ("wrong", prepare_broken, False)):
        filled(path)
        image.unlink(missing_ok=True)
        ran = at.fork(*words, "--name", name, prepare=setting)
        assert ran.status == 0, ran
        assert (image.read_bytes()[65536 : 65536 + 4096] == marker) is is_in, name


def test_files_on_a_volume_are_those_of_begin_time(at: Scene, volumes: Volumes) -> None:
    path = volumes.lv(mib=48)
    mount, log = at.stage.filesystem(path), at.folder / "log"
    before = volumes.picture()
    image = str(at.folder / "copy.img")
    with harness.writing_files(mount, log):
        copied = run_copy(
            str(at.folder), path, f"image:{image}", "--batch", "4m", "--cow", "48m", witness=False
        )
    assert copied.status == 0, copied
    sh("e2fsck", "-fn", image)
    with harness.mounted(at.stage, image, "loop,ro") as there:
        safe, _ = harness.prove_files(str(there), log, copied.t0, copied.t1)
    assert safe > 2
    assert differences(before, volumes.picture()) == []


@pytest.mark.parametrize("load", ["stamp"])
def test_thin_volume_under_load_is_the_image_of_its_snapshot(at: Scene, load: str) -> None:
    volumes = Volumes(at.stage)
    volumes.pool()
    path = volumes.thin()
    stamp.fill(path, seed=3, processes=2)
    before = volumes.picture()
    target, log = at.stage.disk(8), at.folder / "log"
    if load == "fio":
        with harness.fio(path, path):
            copied = run_copy(str(at.folder), path, target, "--verify", vg=volumes.vg)
    else:
        with harness.stamping(path, log, seed=3):
            copied = run_copy(str(at.folder), path, target, "--verify", vg=volumes.vg)
        verdict = stamp.check(target, log, 3, t0=copied.t0, t1=copied.t1)
        assert verdict.wrong == []
    assert_copied(copied, read_device(target))
    assert copied.event("planned")["provider"] == "lvm-thin"
    after = volumes.picture()
    assert differences(_without_use(before), _without_use(after)) == []


def _without_use(picture: dict[str, object]) -> dict[str, object]:
    """The load makes a thin pool fuller."""
    rows = picture["lvs"]
    assert isinstance(rows, list)
    use = ("data_percent", "metadata_percent", "snap_percent", "copy_percent", "sync_percent")
    return picture | {
        "lvs": [{k: v for k, v in row.items() if k not in use} for row in rows],
        "tables": [line for line in picture["tables"] if "thin-pool" not in line],  # type: ignore[attr-defined]
    }


# others at work on the same volume


def test_refresh_and_extension_by_others_keep_the_point_in_time(
    at: Scene, volumes: Volumes
) -> None:
    """LVM gives the origin its full table again: all of it is saved, and then retired anew."""
    path = volumes.lv(mib=16)
    stamp.fill(path, seed=1)
    before = volumes.picture()
    slow = at.slow(at.stage.disk(16), write_ms=300)
    with at.load(path) as log:
        job = at.start(
            "copy", path, slow, "--name", "job", "--json", "--batch", "1m", "--segment", "256k"
        )
        job.wait_for("progress")
        sh("lvchange", "--refresh", f"{volumes.vg}/data")
        sh("lvextend", "--quiet", "--size", "+4m", f"{volumes.vg}/dmcopy_job")
        sh("lvchange", "--addtag", "hello", f"{volumes.vg}/data")
        sh("lvchange", "--deltag", "hello", f"{volumes.vg}/data")
        refused = subprocess.run(
            ["lvextend", "--size", "+1m", f"{volumes.vg}/data"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "only while inactive" in refused.stderr
        at.hurry(slow)
        ran = job.ended()
    assert_proved(ran, log, slow)
    assert ran.event("ended")["retires"] > 1
    assert differences(before, volumes.picture()) == []


@pytest.mark.parametrize("how", ["table", "lvremove"])
def test_layer_taken_out_by_others_is_noticed_and_told(
    at: Scene, volumes: Volumes, how: str
) -> None:
    path = volumes.lv(mib=16)
    before = volumes.picture()
    slow = at.slow(at.stage.disk(16), write_ms=300)
    with at.load(path):
        # without retiring, whose own tables could come between a stranger's load and resume
        words = ("--name", "job", "--json", "--segment", "256k", "--no-retire")
        job = at.start("copy", path, slow, *words)
        job.wait_for("progress")
        if how == "table":
            table = sh("dmsetup", "table", f"{volumes.vg}-data-real")
            sh("dmsetup", "load", f"{volumes.vg}-data", "--table", table)
            sh("dmsetup", "resume", f"{volumes.vg}-data")
        else:  # LVM does not even ask: nobody has the snapshot itself open
            sh("lvremove", "--force", "--yes", f"{volumes.vg}/dmcopy_job")
        ran = job.ended()
    assert ran.status == 4, ran
    why = ran.event("ended")["error"]
    assert any(word in why for word in ("replaced by", "cannot be asked", "taken away")), why
    assert "larger --cow" not in why
    assert differences(before, volumes.picture()) == []


def test_snapshot_of_somebody_else_misses_no_write(at: Scene, volumes: Volumes) -> None:
    """Whoever makes a snapshot of the volume meanwhile gets all of it: nothing is retired then."""
    path = volumes.lv(mib=16)
    content = filled(path)
    slow = at.slow(at.stage.disk(16), write_ms=300)
    volumes.used(path)
    job = at.start(
        "copy", path, slow, "--name", "job", "--json", "--segment", "256k", "--batch", "1m"
    )
    job.wait_for("begun")
    until(lambda: "linear" in sh("dmsetup", "table", f"{volumes.vg}-data"), "something is retired")
    sh(
        "lvcreate", "--quiet", "--yes", "--snapshot", "--chunksize", "64k", "--size", "20m",
        "--name", "theirs", f"{volumes.vg}/data",
    )  # fmt: skip
    harness.write_device(path, b"!" * (16 * MIB))  # also where it was retired before
    at.hurry(slow)
    ran = job.ended()
    assert ran.status == 0, ran
    assert any("has another snapshot" in w["message"] for w in ran.of_kind("warning")), ran
    assert differing(read_device(f"/dev/mapper/{volumes.vg}-theirs"), content) == []
    assert differing(read_device(slow), content) == []
    sh("lvremove", "--force", "--yes", f"{volumes.vg}/theirs")


# room


def test_snapshot_grows_by_lvextend_under_load(at: Scene, volumes: Volumes) -> None:
    path = volumes.lv(mib=48)
    before = volumes.picture()
    stamp.fill(path, seed=1)
    slow = at.slow(at.stage.disk(48), write_ms=100)
    with at.load(path, pause=0.03, max_blocks=8) as log:
        ran = at.run(
            "copy", path, slow, "--json", "--name", "job", "--no-retire", "--segment", "256k",
            "--cow", "8m", "--cow-max", "60m",
        )  # fmt: skip
    assert_proved(ran, log, slow)
    assert ran.of_kind("grown"), "it never grew"
    assert differences(before, volumes.picture()) == []


@pytest.mark.parametrize("on_full", ["fail", "hold"])
def test_full_volume_group_ends_the_copy_or_holds_writers(
    at: Scene, volumes: Volumes, on_full: str
) -> None:
    path = volumes.lv(mib=48)
    stamp.fill(path, seed=1)
    sh("lvcreate", "--quiet", "--yes", "--extents", "100%FREE", "--name", "rest", volumes.vg)
    sh("lvreduce", "--quiet", "--force", "--size", "-16m", f"{volumes.vg}/rest")
    before = volumes.picture()
    slow = at.slow(at.stage.disk(48), write_ms=20 if on_full == "fail" else 100)
    # with the brake: slowly enough that it is not full before the first look
    pace = 0.0 if on_full == "fail" else 0.03
    size = "8m" if on_full == "fail" else "16m"
    words = ("copy", path, slow, "--json", "--name", "job", "--segment", "256k")
    with at.load(path, pause=pace, max_blocks=32 if on_full == "fail" else 8) as log:
        ran = at.run(
            *words, "--cow", size, "--cow-max", "60m", "--on-full", on_full,
            "--no-retire" if on_full == "fail" else "--verify", timeout=200,
        )  # fmt: skip
    if on_full == "fail":
        assert ran.status == 4, ran
        assert "no longer valid" in ran.event("ended")["error"]
    else:
        assert_proved(ran, log, slow)
        assert ran.of_kind("braked")
    assert differences(before, volumes.picture()) == []


def test_snapshot_that_is_full_before_it_was_looked_at_is_lost_and_told(
    at: Scene, volumes: Volumes
) -> None:
    path = volumes.lv(mib=48)
    stamp.fill(path, seed=1)
    before = volumes.picture()
    look = lvm_begin.LvmInstant._check

    def late(self: lvm_begin.LvmInstant) -> None:
        name = f"{volumes.vg}-dmcopy_job"
        until(lambda: "Invalid" in sh("dmsetup", "status", "--noflush", name), "it is full")
        look(self)

    def prepare() -> Context | None:
        lvm_begin.LvmInstant._check = late  # type: ignore[method-assign]
        return None

    words = ("copy", path, at.stage.disk(48), "--name", "job", "--cow", "8m")
    with at.load(path, pause=0.0, max_blocks=32):
        ran = at.fork(*words, prepare=prepare)
    assert ran.status == 4, ran
    assert "the snapshot is no longer valid: the kernel says 'Invalid'" in ran.stderr
    assert differences(before, volumes.picture()) == []


def test_device_under_the_snapshot_that_vanishes_harms_no_write(at: Scene) -> None:
    """LVM can remove nothing while it is away: rescue does when it is back."""
    away = behind(at, at.stage.disk(64))
    volumes = Volumes(at.stage, mib=24, disks=1, over=[away])
    path = volumes.lv(mib=20, on=volumes.disks[1])
    stamp.fill(path, seed=1)
    before = volumes.picture()
    slow = at.slow(at.stage.disk(20), write_ms=300)
    table = sh("dmsetup", "table", away)
    with at.load(path):
        job = at.start("copy", path, slow, "--name", "job", "--json", "--segment", "256k")
        job.wait_for("progress")
        reload(os.path.basename(away), f"0 {table.split()[1]} error")
        ran = job.ended()
    assert ran.status in (4, 6), ran
    assert timed_write(path) < 2
    reload(os.path.basename(away), table)
    assert at.fork("rescue").status == 0
    assert differences(before, volumes.picture()) == []


# interrupted


@pytest.mark.parametrize("how", ["both"])
def test_interrupted_copy_of_a_volume_goes_on(at: Scene, volumes: Volumes, how: str) -> None:
    path = volumes.lv(mib=16)
    stamp.fill(path, seed=1)
    before = volumes.picture()
    slow = at.slow(at.stage.disk(16), write_ms=60)
    with at.load(path) as log:
        job = at.start(
            "copy", path, slow, "--name", "job", "--json", "--batch", "1m", "--segment", "256k"
        )
        begun = job.wait_for("begun")
        while job.wait_for("progress")["bytes_done"] < 4 * MIB:
            pass
        if how == "ctrl-c":
            job.kill(signal.SIGINT)
        else:
            kill_all(job)
        assert job.ended().status in (5, -signal.SIGKILL)
        assert at.fork("rescue").status == 0  # it is kept
        ran = at.run("resume", "job", "--json")
    assert ran.status == 0, ran
    assert ran.event("ended")["bytes_resumed"] > 0
    t0 = harness.nanoseconds(begun["begin_time"])
    verdict = stamp.check(slow, log, 1, t0=t0, t1=t0 + round(begun["hold_seconds"][0] * 1e9))
    assert verdict.is_good, verdict.wrong
    assert differences(before, volumes.picture()) == []


def test_interrupted_copy_of_a_thin_volume_goes_on(at: Scene, volumes: Volumes) -> None:
    volumes.pool(mib=64)
    path = volumes.thin(mib=16)
    content = filled(path)
    slow = at.slow(at.stage.disk(16), write_ms=60)
    volumes.used(path)
    job = at.start(
        "copy", path, slow, "--name", "job", "--json", "--segment", "256k", "--batch", "1m"
    )
    while job.wait_for("progress")["bytes_done"] < 4 * MIB:
        pass
    kill_all(job)
    harness.write_device(path, b"!" * MIB, 8 * MIB)
    ran = at.run("resume", "job", "--json", "--verify")
    assert ran.status == 0, ran
    assert differing(read_device(slow), content) == []
    assert "dmcopy" not in sh("lvs", "--noheadings", volumes.vg)


def test_instant_that_takes_too_long_is_given_up_and_leaves_lvms_view_as_it_was(
    at: Scene, volumes: Volumes
) -> None:
    """What the dead man does to it is shown for groups; here, what is loaded by then goes."""
    path = volumes.lv()
    filled(path)
    volumes.used(path)
    before = volumes.picture()
    tried: list[str] = []

    def too_long(self: lvm_begin.LvmInstant, part: object) -> None:
        tried.append(sh("dmsetup", "info", "-c", "--noheadings", "-o", "name,attr"))
        print(len(tried), f"{volumes.vg}-dmcopy_job:LI" in tried[-1])
        raise HoldLimitExceeded("it took too long; give more time with --hold-limit")

    def prepare() -> Context | None:
        lvm_begin.LvmInstant._alone = too_long  # type: ignore[method-assign, assignment]
        return None

    ran = at.fork("copy", path, at.stage.disk(8), "--name", "job", prepare=prepare)
    assert ran.status == 1, ran
    assert ran.stdout.startswith("1 True\n2 True\n3 True\n"), "a table was loaded each time"
    assert "--hold-limit" in ran.stderr
    assert differences(before, volumes.picture()) == []
    assert timed_write(path) < 2


def test_killed_anywhere_leaves_lvms_view_as_it_was(at: Scene, volumes: Volumes) -> None:
    """At every ninth change, with its worker or without: rescue, and cancel what is kept."""
    path = volumes.lv()
    filled(path)
    volumes.used(path)
    before = volumes.picture()
    note, target = at.folder / "blown", at.stage.disk(8)
    for number, step in enumerate(range(1, 100, 9)):
        who = ("control", "both")[number % 2]
        note.unlink(missing_ok=True)

        def prepare(step: int = step, who: str = who) -> Context:
            return killer.context(step, who, note)

        ran = at.fork("copy", path, target, "--name", "job", "--json", prepare=prepare)
        assert timed_write(path) < 2, f"{step}"
        if not note.exists():
            assert ran.status == 0, ran
            break
        where = note.read_text()
        mended = at.fork("rescue")
        assert mended.status == 0, f"{where}: {mended}"
        if "dmcopy cancel job" in mended.stdout:
            done = at.fork("cancel", "job")
            assert done.status == 0, f"{where}: {done}"
        assert differences(before, volumes.picture()) == [], where
    assert step > 20, "there are more changes than that"


# refused


def refused(at: Scene, *words: str) -> Ran:
    ran = at.fork("copy", *words)
    assert ran.status in (2, 3), ran
    return ran


def test_volumes_that_cannot_be_copied_are_refused_with_the_way_out(
    at: Scene, volumes: Volumes
) -> None:
    path = volumes.lv()
    target = at.stage.disk(8)
    volumes.used(path)
    vg = volumes.vg
    sh("lvcreate", "-qq", "--yes", "--snapshot", "--size", "4m", "--name", "snap", f"{vg}/data")
    sh("lvcreate", "-qq", "--yes", "--size", "8m", "--name", "slow", vg)
    sh("lvcreate", "-qq", "--yes", "--size", "8m", "--name", "fast", vg)
    sh("lvconvert", "-qq", "--yes", "--type", "cache", "--cachevol", "fast", f"{vg}/slow")
    close = [volumes.used(f"/dev/mapper/{vg}-{name}") for name in ("snap", "slow")]
    before = volumes.picture()
    device = at.stage.disk(16)
    for words, said in (
        ((f"/dev/mapper/{vg}-snap", target), f"copy its origin, {vg}/data"),
        ((f"/dev/mapper/{vg}-slow", target), "lvconvert --splitcache"),
        ((f"/dev/mapper/{vg}-data-real", target), "hidden part of a logical volume"),
        ((path, target, "--cow", device), "lies in its own volume group"),
        ((path, target, "--cow", "vg:other"), "lies in its own volume group"),
        ((path, target, "--cow", "4g"), "no room for a COW device of 4.0 GiB"),
        ((path, target, "--chunk", "1m"), "chunks of at most 512.0 KiB"),
    ):
        assert said in refused(at, *words).said, words
    assert differences(before, volumes.picture()) == []
    for one in close:
        one()
    sh("lvremove", "-qq", "--yes", "--force", f"{vg}/slow", f"{vg}/snap")
    sh("lvcreate", "-qq", "--yes", "--extents", "100%FREE", "--name", "rest", vg)
    said = refused(at, path, target).said
    assert f"no room for a COW device in volume group {vg}: 0 B are free; add a device" in said


def test_volume_group_locked_by_another_command_is_told(at: Scene, volumes: Volumes) -> None:
    path = volumes.lv()
    volumes.used(path)
    before = volumes.picture()
    fd = os.open(f"/run/lock/lvm/V_{volumes.vg}", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # as a command that only reads, so that lvs works

        def prepare() -> Context | None:
            defaults = lvm_lock.wait_for_vg.__kwdefaults__
            assert defaults is not None
            defaults["wait"] = 0.5
            return None

        ran = at.fork("copy", path, at.stage.disk(8), "--name", "job", prepare=prepare)
    finally:
        os.close(fd)
    assert ran.status == 1, ran
    assert "locked by another LVM command" in ran.stderr
    assert differences(before, volumes.picture()) == []


def test_volume_whose_devices_lvm_may_not_see_is_refused(at: Scene, volumes: Volumes) -> None:
    path = volumes.lv()
    volumes.used(path)
    before = volumes.picture()
    local = Path("/etc/lvm/lvmlocal.conf")
    kept = local.read_text() if local.exists() else None
    local.write_text('devices {\n\tfilter = [ "r|.*|" ]\n}\n')
    try:
        ran = at.fork("copy", path, at.stage.disk(8), "--name", "job")
    finally:
        local.unlink() if kept is None else local.write_text(kept)
    assert ran.status == 3, ran
    assert "LVM does not show it" in ran.said
    assert "devices/filter" in ran.said
    assert differences(before, volumes.picture()) == []


def test_volume_group_that_lacks_a_device_is_refused(at: Scene, volumes: Volumes) -> None:
    path = volumes.lv()
    volumes.used(path)
    lost, target = volumes.disks[-1], at.stage.disk(8)
    file = sh("losetup", "--noheadings", "--output", "BACK-FILE", lost)
    sh("losetup", "--detach", lost)
    try:
        ran = at.fork("copy", path, target, "--name", "job")
    finally:
        sh("losetup", lost, file)
    assert ran.status == 3, ran
    assert "lacks 1 of its devices" in ran.said
    assert "vgreduce --removemissing" in ran.said
