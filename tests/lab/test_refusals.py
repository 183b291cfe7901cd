"""What dmcopy refuses, by its command line: status 3 (2 for usage), one line, nothing changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.lab.scene import Scene, scene, sectors
from tests.lab.stage import patiently, sh

pytestmark = pytest.mark.lab

MIB = 16
SIZE = MIB << 11


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("refuse") as here:
        yield here


@pytest.fixture
def source(at: Scene) -> str:
    """Give a plain dm device that is in use."""
    origin = at.origin(MIB)
    at.hold_open(origin)
    return origin


def refused(
    at: Scene,
    *argv: str,
    says: str,
    status: int = 3,
    watch: Sequence[str] = (),
    before: dict[str, str] | None = None,
) -> None:
    """It says *says* in its one line, and everything is as it was (*before*: a picture of that)."""
    before = before or at.picture(*watch)
    said_no(at, *argv, says=says, status=status)
    assert at.picture(*watch) == before


def said_no(at: Scene, *argv: str, says: str, status: int = 3) -> None:
    """It says *says* in its one line; whether anything was changed is for the caller to see."""
    ran = at.fork(*argv)
    assert ran.status == status, ran
    assert ran.stdout == "", ran
    assert ran.said.startswith("dmcopy: "), ran
    assert says in ran.said, ran
    assert status != 3 or "; " in ran.said, f"no way out is named: {ran}"


# destinations


def mounted(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    return disk, f"{disk} is mounted on {at.stage.filesystem(disk)}"


def swap(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    sh("mkswap", disk)
    sh("swapon", disk)
    at.stage.later(patiently, "swapoff", disk)
    return disk, f"{disk} is in use as swap"


def under_dm(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    return disk, f"{disk} is part of {at.stage.linear(disk)}"


def under_md(at: Scene) -> tuple[str, str]:
    one, two = at.stage.disk(MIB), at.stage.disk(MIB)
    return one, f"{one} is part of {at.stage.md(one, two)}"


def physical_volume(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    sh("pvcreate", "--quiet", disk)
    return disk, "it carries LVM2_member"


def file_system(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    sh("mkfs.ext4", "-q", disk)
    return disk, "it carries ext4"


def partition_table(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    at.stage.partition(disk)
    return disk, "it carries dos"


def mounted_partition(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    at.stage.filesystem(at.stage.partition(disk))
    return disk, f"a partition of {disk}, is mounted on"


def too_small(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB - 1)
    return disk, f"{disk} is too small"


def read_only(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    sh("blockdev", "--setro", disk)
    at.stage.later(patiently, "blockdev", "--setrw", disk)
    return disk, f"{disk} is read-only"


def open_for_writing(at: Scene) -> tuple[str, str]:
    disk = at.stage.disk(MIB)
    at.stage.later(os.close, os.open(disk, os.O_RDWR))
    return disk, f"{disk} is open for writing by"


@pytest.mark.parametrize(
    "make",
    [
        mounted, swap, under_dm, under_md, physical_volume, file_system, partition_table,
        mounted_partition, too_small, read_only, open_for_writing,
    ],
)  # fmt: skip
def test_destination_is_refused(
    at: Scene, source: str, make: Callable[[Scene], tuple[str, str]]
) -> None:
    disk, says = make(at)
    watch = [] if make in (mounted, mounted_partition) else [disk]  # ext4 writes by itself
    before = at.picture(*watch)
    refused(at, "copy", source, disk, says=says, watch=watch, before=before)
    dry = ("copy", source, f"block:{disk}", "--dry-run")
    refused(at, *dry, says=says, watch=watch, before=before)
    if make not in (physical_volume, file_system, partition_table):
        more = ("copy", source, disk, "--overwrite-signature")
        refused(at, *more, says=says, watch=watch, before=before)


def test_source_and_its_relatives_are_no_destination(at: Scene) -> None:
    disk = at.stage.disk(MIB)
    source = at.origin(under=disk)
    above = at.origin(under=source)
    at.hold_open(source)
    refused(at, "copy", source, source, says=f"{source} is the source itself", watch=[disk])
    refused(at, "copy", source, disk, says=f"{disk} holds the source {source}", watch=[disk])
    refused(at, "copy", source, above, says=f"{above} lies on the source {source}", watch=[disk])
    refused(at, "copy", disk, source, says="", watch=[disk])


def test_nothing_is_ever_made_under_dev(at: Scene, source: str) -> None:
    before = at.picture()
    for path in ("/dev/no-such-disk", "/dev/mapper/no-such", "/dev/disk/by-id/wwn-0xno"):
        for kind in ("", "block:", "image:"):
            said_no(at, "copy", source, kind + path, says=path)
            assert not os.path.lexists(path)
    assert not os.path.lexists("/dev/no-such-disk.partial")
    assert at.picture() == before


def test_images_are_refused(at: Scene, source: str) -> None:
    file = at.stage.file(1)
    refused(at, "copy", source, file, says=f"{file} exists", watch=[file])
    refused(at, "copy", source, str(at.folder), says="is a directory")
    refused(at, "copy", source, f"{at.folder}/no/copy.img", says="there is no directory")
    refused(at, "copy", source, f"block:{file}", says=f"{file} is not a block device", watch=[file])


# sources


def test_mounted_bare_device_cannot_be_spliced(at: Scene) -> None:
    disk = at.stage.disk(MIB)
    mount = at.stage.filesystem(disk)
    refused(at, "copy", disk, at.stage.disk(MIB), says=f"{disk} is in use (mounted on {mount})")


def test_bare_device_under_dm_cannot_be_spliced(at: Scene) -> None:
    disk = at.stage.disk(MIB)
    at.hold_open(at.origin(under=disk))
    refused(at, "copy", disk, at.stage.disk(MIB), says=f"{disk} is in use (held by dm-")


@pytest.mark.parametrize(
    ("uuid", "says"),
    [
        ("mpath-3600", "is a multipath map in use"),
        ("CRYPT-LUKS2-1234-x", "is an encrypted device in use"),
        ("LVM-abc", "is a logical volume in use, but LVM does not show it"),
        ("DMCOPY-other-source", "is the source device of job other"),
    ],
)
def test_dm_device_of_somebody_elses_cannot_be_spliced(at: Scene, uuid: str, says: str) -> None:
    disk = at.stage.disk(MIB)
    name = "dmct-refuse-owned"
    sh("dmsetup", "create", name, "--uuid", uuid, "--table", f"0 {SIZE} linear {disk} 0")
    at.stage.later(patiently, "dmsetup", "remove", name)
    at.hold_open(f"/dev/mapper/{name}")
    refused(at, "copy", f"/dev/mapper/{name}", at.stage.disk(MIB), says=says, watch=[disk])


def mirror(at: Scene) -> str:
    one, two = at.stage.disk(MIB), at.stage.disk(MIB)
    sh("modprobe", "dm-mirror")
    return at.stage.dm(f"0 {SIZE} mirror core 2 1024 nosync 2 {one} 0 {two} 0")


def raid(at: Scene) -> str:
    one, two = at.stage.disk(MIB), at.stage.disk(MIB)
    sh("modprobe", "dm-raid")
    return at.stage.dm(f"0 {SIZE} raid raid1 3 0 region_size 1024 2 - {one} - {two}")


def thin(at: Scene) -> str:
    meta, data = at.stage.disk(4), at.stage.disk(MIB)
    sh("modprobe", "dm-thin-pool")
    pool = at.stage.dm(f"0 {SIZE} thin-pool {meta} {data} 128 0")
    sh("dmsetup", "message", pool, "0", "create_thin 0")
    return at.stage.dm(f"0 {SIZE} thin {pool} 0")


@pytest.mark.parametrize("make", [mirror, raid, thin])
def test_target_with_a_state_of_its_own_cannot_be_moved(
    at: Scene, make: Callable[[Scene], str]
) -> None:
    device = make(at)
    at.hold_open(device)
    says = f"{device} has a target of kind {make.__name__}, which cannot be moved"
    refused(at, "copy", device, at.stage.disk(MIB), says=says)


def test_suspended_source_is_refused(at: Scene, source: str) -> None:
    sh("dmsetup", "suspend", source)
    try:
        refused(at, "copy", source, at.stage.disk(MIB), says=f"{source} is suspended")
    finally:
        sh("dmsetup", "resume", source)


def test_origin_that_is_being_copied_is_refused(at: Scene, source: str) -> None:
    slow, other = at.slow(at.stage.disk(MIB), write_ms=600), at.stage.disk(MIB)
    running = at.start("copy", source, slow, "--name", "first", "--json", "--segment", "1m")
    running.wait_for("progress")
    ran = at.fork("copy", source, other)
    assert (ran.status, ran.stdout) == (3, "")
    assert f"{source} is being copied already, by job first" in ran.said
    for role in ("source", "cow", "snap"):
        device = f"/dev/mapper/dmcopy-first-{role}"
        ran = at.fork("copy", device, other)
        assert ran.status == 3
        assert f"{device} is the {role} device of job first" in ran.said
    ran = at.fork("copy", at.origin(MIB), other, "--name", "first", "--cow", "8m")
    assert ran.status == 3
    assert "job first" in ran.said
    assert running.process.poll() is None
    at.hurry(slow)
    assert running.ended().status == 0


def test_what_is_no_block_device_is_no_source(at: Scene) -> None:
    disk = at.stage.disk(1)
    for path, says in (
        (at.stage.file(1), "is not a block device"),
        (str(at.folder), "is not a block device"),
        ("/dev/null", "is not a block device"),
        ("/dev/no-such-disk", "No such file or directory"),
        ("", "No such file or directory"),
    ):
        refused(at, "copy", path, disk, says=says, status=2, watch=[disk])


# COW devices


def test_cow_device_is_held_to_what_a_destination_is(at: Scene, source: str) -> None:
    free, signed, busy = (at.stage.disk(MIB) for _ in range(3))
    sh("mkfs.ext4", "-q", signed)
    mount = at.stage.filesystem(busy)

    def no(cow: str, says: str, *more: str, status: int = 3) -> None:
        said_no(at, "copy", source, free, "--cow", cow, *more, says=says, status=status)

    file = at.stage.file(1)
    before = at.picture(free, signed)
    no(signed, "it carries ext4")
    no(signed, "it carries ext4", "--overwrite-signature")
    no(busy, f"COW device: {busy} is mounted on {mount}")
    no(source, f"COW device: {source} is the source itself")
    no(free, "in use by this job already")
    no("/dev/no-such-disk", "No such file or directory", status=2)
    no("/dev/no-such-dir/cow:8m", "No such file or directory", status=2)
    no(f"{file}:8m", "exists")
    no("1k", "too small for a COW device")
    no("100g", "no room for a COW device of 100.0 GiB")
    assert at.picture(free, signed) == before


def test_cow_file_on_the_source_is_refused(at: Scene) -> None:
    origin = at.origin(MIB)
    mount = at.stage.filesystem(origin)
    ran = at.fork("copy", origin, at.stage.disk(MIB), "--cow", f"{mount}/cow:4m")
    assert ran.status == 3, ran
    assert "would lie on the device that is being copied" in ran.said
    assert os.listdir(mount) == ["lost+found"]


# words

USAGE = [
    (["--chunk", "3k"], "a chunk of 3.0 KiB cannot be"),
    (["--chunk", "0"], "chunk"),
    (["--chunk", "2m"], "a chunk of 2.0 MiB cannot be"),
    (["--chunk", "many"], "many"),
    (["--segment", "0"], "segment"),
    (["--segment", "1t"], "a segment of 1.0 TiB is too large"),
    (["--segment", "-4m"], "segment"),
    (["--cow", "nonsense"], "'nonsense' is not a COW device"),
    (["--cow", ""], "is not a COW device"),
    (["--hold-limit", "0"], "is not a number of seconds above 0"),
    (["--hold-limit", "soon"], "is not a number of seconds above 0"),
    (["--digest", "crc"], "invalid choice: 'crc'"),
    (["--name", "a/b"], "'a/b' cannot name a job"),
    (["--name", ""], ""),
    (["--name", "x" * 101], "cannot name a job"),
    (["--name", "../up"], "cannot name a job"),
    (["--verify", "--digest", "none"], "--verify compares digests"),
    (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    (["--verif"], "unrecognized arguments: --verif"),
    (["extra"], "unrecognized arguments: extra"),
]


def test_bad_words_are_status_2_and_one_line(at: Scene, source: str) -> None:
    disk = at.stage.disk(MIB)
    idle = at.stage.disk(1)
    before = at.picture(disk, idle)

    def wrong(*argv: str, says: str) -> None:
        said_no(at, *argv, says=says, status=2)

    for words, says in USAGE:
        if words != ["--name", ""]:  # stands for the default
            wrong("copy", source, disk, *words, says=says)
    for destination in ("tape:/dev/nst0", "block:", "image:", ""):
        wrong("copy", source, destination, says=destination)
    wrong("copy", source, says="say SOURCE, DESTINATION; or --pair")
    wrong(says="required: COMMAND")
    wrong("destroy", says="invalid choice: 'destroy'")
    wrong("rescue", "nobody", says="there is no job nobody")
    wrong("status", "nobody", says="nobody")
    wrong("copy", idle, disk, "--cow", "8m", says="takes no --cow")
    assert at.picture(disk, idle) == before


def test_every_good_word_after_all_the_bad_ones(at: Scene, source: str) -> None:
    """The same command without a mistake goes through: status 0."""
    disk = at.stage.disk(MIB)
    ran = at.run("copy", source, disk, "--chunk", "16k", "--segment", "1m", "--cow", "8m", "--json")
    assert ran.status == 0, ran
    assert ran.stderr == ""
    assert sectors(disk) == sectors(source)


def test_plan_changes_nothing(at: Scene, source: str) -> None:
    disk = at.stage.disk(MIB)
    before = at.picture(disk)
    for argv in (("plan",), ("plan", "--json"), ("copy", "--dry-run")):
        ran = at.fork(argv[0], source, disk, *argv[1:])
        assert (ran.status, ran.stderr) == (0, "")
        assert "snapshot-origin" in ran.stdout
    assert at.picture(disk) == before
