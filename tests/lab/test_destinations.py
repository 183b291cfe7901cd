"""Destinations on real devices: the promises, every refusal, and what breaks in mid-copy."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from dmcopy.core.extent import Extent
from dmcopy.destinations.base import Destination, Session, Surroundings
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.image import ImageDestination, ImageSession
from dmcopy.errors import DestinationFailed, Refused
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.command import Commander, Completed
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import MIB, Sectors, to_bytes
from tests.contract.destination_promises import PROMISES, SEGMENT, Place, buffer, pattern
from tests.lab.stage import Stage, patiently, sh

pytestmark = pytest.mark.lab

LENGTH = Sectors(4 * 2048)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("dest")
    yield made
    made.close()


def surroundings(source: str, *, spare: Sequence[str] = ()) -> Surroundings:
    sysfs = Sysfs()
    return Surroundings(
        sysfs=sysfs,
        run=Commander(),
        source=sysfs.devno_of(source),
        spare=frozenset(sysfs.devno_of(path) for path in spare),
    )


@pytest.fixture
def around(stage: Stage) -> Surroundings:
    return surroundings(stage.disk(4))


def refused(
    destination: Destination, around: Surroundings, match: str, length: Sectors = LENGTH
) -> None:
    """It is refused by `check`, and by `open`, and with --overwrite-signature too."""
    for forced in (around, replace(around, overwrite_signature=True)):
        with pytest.raises(Refused, match=match) as caught:
            destination.check(length, forced)
        assert "\n" not in str(caught.value)
        assert caught.value.way_out
        assert caught.value.exit_status == 3
        with pytest.raises(Refused, match=match), destination.open(length, forced):
            pass


# The promises


def _block(path: str, around: Surroundings, length: Sectors = LENGTH) -> Place:
    def content() -> bytes:
        with open(path, "rb") as device:
            return device.read(to_bytes(length))

    return Place(BlockDestination.parse(path), length, around, content)


def _image(folder: str, around: Surroundings) -> Place:
    path = os.path.join(folder, "db.img")

    def content() -> bytes:
        with suppress(FileNotFoundError), open(path, "rb") as file:
            return file.read()
        return b""

    return Place(ImageDestination.parse(path), Sectors(LENGTH + 3), around, content)


def _place(kind: str, stage: Stage) -> Place:
    around = surroundings(stage.disk(4, sector=4096 if kind == "4k" else 512))
    match kind:
        case "loop":
            return _block(stage.disk(4), around)
        case "4k":
            return _block(stage.disk(8, sector=4096), around)
        case "dm":
            return _block(stage.linear(stage.disk(8)), around)
        case "md":
            return _block(stage.md(stage.disk(8), stage.disk(8)), around)
        case "partition":
            return _block(stage.partition(stage.disk(16)), around)
        case "ext4":
            return _image(stage.filesystem(stage.disk(32)), around)
        case "ext4 on 4k":
            return _image(stage.filesystem(stage.disk(32, sector=4096)), around)
        case "xfs":
            return _image(stage.filesystem(stage.disk(320), "xfs"), around)
        case "tmpfs":
            return _image(stage.folder, around)
        case _:
            return _image("/root", around)  # the guest's root: an overlay over a tmpfs


KINDS_OF_PLACE = (
    "loop", "4k", "dm", "md", "partition", "ext4", "ext4 on 4k", "xfs", "tmpfs", "overlay",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_PLACE)
def test_destination_keeps_every_promise(kind: str, stage: Stage) -> None:
    place = _place(kind, stage)
    failed: list[BaseException] = []
    for promise in PROMISES:
        try:
            promise(place)
        except Exception as error:
            error.add_note(f"{promise.__name__} of {kind}")
            failed.append(error)
        finally:
            if isinstance(place.destination, ImageDestination):
                with suppress(FileNotFoundError):
                    os.unlink(place.destination.path)
    if failed:
        raise BaseExceptionGroup(f"{kind} broke promises", failed)


def test_image_is_written_directly_where_the_file_system_can(
    stage: Stage, around: Surroundings
) -> None:
    point = stage.filesystem(stage.disk(32))
    for folder, direct in ((point, True), (stage.folder, False)):
        with ImageDestination.parse(f"{folder}/x").open(LENGTH, around) as session:
            assert isinstance(session, ImageSession)
            assert session.direct == direct
            at = Extent(Sectors(0), SEGMENT)
            session.write(at, buffer(pattern(at)))
            if direct:  # written without a flush, and nothing of it stays in the page cache
                cached = sh("fincore", "--bytes", "-no", "RES", f"{folder}/x.partial")
                assert cached == "0"


# The refusals


def test_mounted_device_is_refused_by_whatever_name(stage: Stage, around: Surroundings) -> None:
    linear = stage.linear(stage.disk(16))
    stage.filesystem(linear)
    other = os.path.join(stage.folder, "other-name")
    os.mknod(other, 0o60600, os.stat(linear).st_rdev)
    for path in (linear, os.path.realpath(linear), other):
        refused(BlockDestination.parse(path), around, "is mounted on|is claimed by")
        with pytest.raises(Refused, match=r"is mounted on /run/.*; unmount it"):
            BlockDestination.parse(path).check(LENGTH, around)


def test_disk_with_a_mounted_partition_is_refused(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(16)
    part = stage.partition(disk)
    stage.filesystem(part)
    with pytest.raises(Refused, match=rf"p1, a partition of {disk}, is mounted on"):
        BlockDestination.parse(disk).check(LENGTH, around)
    refused(BlockDestination.parse(disk), around, "mounted|claimed")
    refused(BlockDestination.parse(part), around, "mounted|claimed")


def test_device_mounted_in_another_mount_namespace_is_refused(
    stage: Stage, around: Surroundings
) -> None:
    disk = stage.disk(16)
    sh("mkfs.ext4", "-q", disk)
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount {disk} /mnt && echo up && read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        refused(BlockDestination.parse(disk), around, "claimed by the kernel or another mount")
        holder.communicate(b"\n")


def test_swap_is_refused(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(16)
    sh("mkswap", "--quiet", disk)
    sh("swapon", disk)
    stage.later(sh, "swapoff", disk)
    with pytest.raises(Refused, match="in use as swap"):
        BlockDestination.parse(disk).check(LENGTH, around)
    refused(BlockDestination.parse(disk), around, "in use as swap|claimed")


def test_device_under_dm_is_refused(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(16)
    linear = stage.linear(disk)
    with pytest.raises(Refused, match=f"is part of {linear}; take that down"):
        BlockDestination.parse(disk).check(LENGTH, around)
    refused(BlockDestination.parse(disk), around, "is part of|claimed")
    stage.linear(linear)
    refused(BlockDestination.parse(linear), around, "is part of|claimed")


def test_member_of_md_is_refused_while_it_runs_and_afterwards(
    stage: Stage, around: Surroundings
) -> None:
    with open("/etc/mdadm/mdadm.conf", "a") as settings:  # the guest's own copy
        settings.write("AUTO -all\n")  # else udev assembles it again at once
    one, two = stage.disk(16), stage.disk(16)
    md = stage.md(one, two)
    with pytest.raises(Refused, match="is part of /dev/md"):
        BlockDestination.parse(one).check(LENGTH, around)
    refused(BlockDestination.parse(two), around, "is part of|claimed")
    patiently("mdadm", "--stop", "--quiet", md)
    sh("udevadm", "settle")
    with pytest.raises(Refused, match="carries linux_raid_member"):
        BlockDestination.parse(one).check(LENGTH, around)
    sh("mdadm", "--assemble", "--run", "--quiet", md, one, two)  # the stage stops it again


def test_pv_is_refused_without_and_with_an_active_lv(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(16)
    options = ("--yes", "--quiet", "--quiet", "--devices", disk)
    sh("pvcreate", *options, disk)
    destination = BlockDestination.parse(disk)
    with pytest.raises(Refused, match="carries LVM2_member"):
        destination.check(LENGTH, around)
    sh("vgcreate", *options, "destvg", disk)
    stage.later(sh, "vgremove", *options, "--force", "destvg")
    sh("lvcreate", *options, "--wipesignatures", "n", "-l1", "-n", "lv", "destvg")
    with pytest.raises(Refused, match="is part of /dev/mapper/destvg-lv"):
        destination.check(LENGTH, around)
    refused(destination, around, "is part of|claimed")


def test_device_claimed_or_written_by_a_program_is_refused(
    stage: Stage, around: Surroundings
) -> None:
    disk = stage.disk(16)
    for flags, match in (
        ("os.O_RDONLY | os.O_EXCL", r"claimed by python3? \(pid \d+\)"),
        ("os.O_RDWR", r"open for writing by python3? \(pid \d+\)"),
    ):
        program = f"import os; os.open({disk!r}, {flags}); print(flush=True); input()"
        with subprocess.Popen(
            ["python3", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            refused(BlockDestination.parse(disk), around, match)
            holder.communicate(b"\n")


def test_backing_device_of_a_loop_is_refused(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(16)
    loop = stage.disk(file=disk)
    refused(BlockDestination.parse(disk), around, f"is under the loop device {loop}")


def test_signatures_are_refused_unless_they_may_be_lost(stage: Stage, around: Surroundings) -> None:
    partitioned = stage.disk(16)
    sh("partx", "--delete", "--nr", "1", stage_partition(stage, partitioned))
    for disk, make, match in (
        (stage.disk(16), ["mkfs.ext4", "-q", "-L", "data"], r"carries ext4 \(label data\)"),
        (stage.disk(320), ["mkfs.xfs", "-q"], "carries xfs"),
        (stage.disk(16), ["mkswap", "--quiet"], "carries swap"),
        (partitioned, ["true"], "carries dos"),
    ):
        sh(*make, disk)
        destination = BlockDestination.parse(disk)
        with pytest.raises(Refused, match=rf"{match}; give --overwrite-signature"):
            destination.check(LENGTH, around)
        forced = replace(around, overwrite_signature=True)
        destination.check(LENGTH, forced)
        with destination.open(LENGTH, forced):
            pass


def stage_partition(stage: Stage, disk: str) -> str:
    """Write a table and leave the kernel without the partition, so that nothing but it is there."""
    other = stage.disk(16)
    sh("dd", f"if={other}", f"of={disk}", "bs=512", "count=1", "status=none")
    stage.partition(disk)
    return disk


def test_source_and_what_is_below_and_above_it_are_refused(stage: Stage) -> None:
    disk = stage.disk(64)
    part = stage.partition(disk)
    middle = stage.linear(part)
    top = stage.linear(middle)
    around = surroundings(middle)
    small = Sectors(2048)
    refused(BlockDestination.parse(middle), around, "is the source itself|claimed", small)
    refused(BlockDestination.parse(part), around, "holds the source|claimed", small)
    refused(BlockDestination.parse(disk), around, "holds the source|claimed", small)
    refused(BlockDestination.parse(top), around, "lies on the source", small)
    for path in (middle, part, disk):
        with pytest.raises(Refused, match="the source"):
            BlockDestination.parse(path).check(small, around)


def test_idle_source_itself_is_refused(stage: Stage) -> None:
    disk = stage.disk(16)
    refused(BlockDestination.parse(disk), surroundings(disk), "is the source itself")


def test_loop_over_a_file_on_the_source_is_refused(stage: Stage) -> None:
    source = stage.disk(64)
    point = stage.filesystem(source)
    disk = stage.disk(file=stage.file(8, folder=point))
    refused(BlockDestination.parse(disk), surroundings(source), "lies on the source")


def test_device_of_the_job_is_refused(stage: Stage) -> None:
    source, cow = stage.disk(4), stage.disk(16)
    refused(BlockDestination.parse(cow), surroundings(source, spare=[cow]), "by this job already")


def test_unfit_devices_are_refused(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(4)
    refused(BlockDestination.parse(disk), around, "is too small", Sectors(LENGTH + 1))
    refused(BlockDestination.parse(stage.disk(16, sector=4096)), around, "blocks of 4096 bytes")
    sh("blockdev", "--setro", disk)
    stage.later(sh, "blockdev", "--setrw", disk)  # a loop device stays read-only for its next user
    refused(BlockDestination.parse(disk), around, "is read-only|may not be written")
    with pytest.raises(Refused, match="is read-only; blockdev --setrw"):
        BlockDestination.parse(disk).check(LENGTH, around)


def test_what_is_no_device_is_refused_and_nothing_is_made(
    stage: Stage, around: Surroundings
) -> None:
    refused(BlockDestination.parse(stage.file(8)), around, "not a block device; write image:")
    refused(BlockDestination.parse("/dev/null"), around, "not a block device")
    before = sorted(os.listdir("/dev"))
    refused(BlockDestination.parse("/dev/dest-none"), around, "there is no device")
    refused(ImageDestination.parse("/dev/dest-none"), around, "would be a file under /dev")
    assert sorted(os.listdir("/dev")) == before


def test_use_that_begins_between_check_and_open_is_seen(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(16)
    destination = BlockDestination.parse(disk)
    destination.check(LENGTH, around)
    loop = stage.disk(file=disk)  # O_EXCL would be granted
    with pytest.raises(Refused, match=loop), destination.open(LENGTH, around):
        pass


def test_other_device_behind_the_same_path_is_refused(stage: Stage, around: Surroundings) -> None:
    link = os.path.join(stage.folder, "link")
    os.symlink(stage.disk(16), link)
    destination = BlockDestination.parse(link)
    known = replace(around, identity=destination.identity(around))
    with destination.open(LENGTH, known):
        pass
    os.unlink(link)
    os.symlink(stage.disk(16), link)
    with (
        pytest.raises(Refused, match="is not the device it was"),
        destination.open(LENGTH, known),
    ):
        pass


def test_identity_of_a_partition_has_its_uuid(stage: Stage, around: Surroundings) -> None:
    part = stage.partition(stage.disk(16))
    found = BlockDestination.parse(part).identity(around)
    assert found["partuuid"] == "70636d64-01"
    assert found["partition"] == "1"


def test_open_starts_no_program(stage: Stage, around: Surroundings) -> None:
    def never(argv: Sequence[str], stdin: str | None, timeout: float) -> Completed:
        raise AssertionError(f"started {argv} in {timeout} s with {stdin}")

    inside = replace(around, run=Commander(never))
    with BlockDestination.parse(stage.disk(16)).open(LENGTH, inside):
        pass
    with ImageDestination.parse(f"{stage.folder}/x").open(LENGTH, inside):
        pass


def test_nobody_gets_the_device_while_it_is_open(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(16)
    with BlockDestination.parse(disk).open(LENGTH, around):
        for argv in (["mkfs.ext4", "-q", "-F", disk], ["dmsetup", "create", "dest-no", "--table",
                     f"0 8 linear {disk} 0"]):  # fmt: skip
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode != 0
            assert "busy" in done.stderr or "in use" in done.stderr
        subprocess.run(["dmsetup", "remove", "dest-no"], capture_output=True, check=False)


def test_image_on_the_source_is_refused(stage: Stage) -> None:
    disk = stage.disk(64)
    part = stage.partition(disk)
    linear = stage.linear(part)
    point = stage.filesystem(linear)
    for source in (linear, part, disk):
        refused(ImageDestination.parse(f"{point}/x"), surroundings(source), "lies on the source")


# What breaks in mid-copy


def _fill(session: Session, length: Sectors = LENGTH) -> None:
    for at in Extent(Sectors(0), length).split(SEGMENT, align=SEGMENT):
        session.write(at, buffer(pattern(at)))
    session.flush()


def test_write_error_is_said_with_its_place(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(8)
    bad = stage.dm(f"0 4096 linear {disk} 0\n4096 8 error\n4104 4088 linear {disk} 4104")
    with BlockDestination.parse(bad).open(LENGTH, around) as session:
        with pytest.raises(
            DestinationFailed, match=rf"cannot write {bad} at byte {2 * MIB}: Input/output error"
        ):
            _fill(session)
        with pytest.raises(DestinationFailed, match="cannot write zeroes to"):
            session.zero(Extent(Sectors(4096), Sectors(2048)))
        with pytest.raises(DestinationFailed, match="cannot read back"):
            session.read(Extent(Sectors(4096), Sectors(8)), buffer(bytes(4096)))


def test_device_that_vanishes_ends_the_copy(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(8)
    path = stage.linear(disk)
    at = Extent(Sectors(0), SEGMENT)
    with BlockDestination.parse(path).open(LENGTH, around) as session:
        _fill(session)
        size = int(sh("blockdev", "--getsz", path))
        sh("dmsetup", "load", path, "--table", f"0 {size} error")
        sh("dmsetup", "resume", path)
        calls: tuple[Callable[[], None], ...] = (
            lambda: session.write(at, buffer(pattern(at))),
            lambda: session.zero(at),
            lambda: session.read(at, buffer(bytes(at.size))),
        )  # no flush: dm sends none to an error target, so an fsync alone succeeds (seen on 6.1)
        for call in calls:
            with pytest.raises(DestinationFailed, match="Input/output error"):
                call()


def test_device_that_fails_only_flushes_is_noticed(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(8)
    size = int(sh("blockdev", "--getsz", disk))
    path = stage.dm(f"0 {size} flakey {disk} 0 0 3600 1 error_writes")
    with (
        BlockDestination.parse(path).open(LENGTH, around) as session,
        pytest.raises(DestinationFailed, match="Input/output error"),
    ):
        session.flush()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
def test_full_file_system_ends_the_copy_and_is_freed_again(
    stage: Stage, around: Surroundings, kind: str
) -> None:
    if kind == "tmpfs":
        point = os.path.join(stage.folder, "small")
        os.mkdir(point)
        sh("mount", "-t", "tmpfs", "-o", "size=8m", "small", point)
        stage.later(sh, "umount", point)
    else:
        point = stage.filesystem(stage.disk(320 if kind == "xfs" else 16), kind)
    free = os.statvfs(point).f_bavail
    length = Sectors(400 * 2048)

    def copy() -> None:
        with ImageDestination.parse(f"{point}/x").open(length, around) as session:
            _fill(session, length)

    with pytest.raises(DestinationFailed, match=r"at byte \d+: No space left on device; make room"):
        copy()
    assert os.listdir(point) in ([], ["lost+found"])
    sh("sync")
    assert os.statvfs(point).f_bavail >= free - 16


def test_image_on_a_disk_that_fails_is_noticed(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(64)
    path = stage.linear(disk)
    point = stage.filesystem(path)
    size = int(sh("blockdev", "--getsz", path))
    destination = ImageDestination.parse(f"{point}/x")

    def copy() -> None:
        with destination.open(LENGTH, around) as session:
            _fill(session)
            sh("dmsetup", "suspend", "--nolockfs", path)
            sh("dmsetup", "load", path, "--table", f"0 {size} error")
            sh("dmsetup", "resume", path)
            _fill(session)

    try:
        with pytest.raises(DestinationFailed, match=r"cannot (write|flush) .*x\.partial"):
            copy()
    finally:
        sh("dmsetup", "load", path, "--table", f"0 {size} linear {disk} 0")
        # without lockfs: ext4 has given up, and would answer a freeze with EIO
        sh("dmsetup", "resume", "--nolockfs", path)


def test_killed_copy_leaves_a_partial_file_that_is_told_from_a_living_one(
    stage: Stage, around: Surroundings
) -> None:
    destination = ImageDestination.parse(f"{stage.folder}/x")
    pid = os.fork()
    if pid == 0:
        with destination.open(LENGTH, around):
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    with pytest.raises(Refused, match="left behind by a copy that was killed"):
        destination.check(LENGTH, around)
    for path in destination.leftovers():
        os.unlink(path)
    destination.check(LENGTH, around)


def test_zeroes_reach_the_medium_beneath(stage: Stage, around: Surroundings) -> None:
    disk = stage.disk(8)
    with open(disk, "r+b") as writer:
        writer.write(b"x" * (8 * MIB))
    with BlockDestination.parse(disk).open(LENGTH, around) as session:
        session.zero(Extent(Sectors(0), LENGTH))
        session.flush()
    with BlockDevice.open(disk, direct=False) as device:
        found = os.pread(device.fd, 8 * MIB, 0)
    assert found == bytes(to_bytes(LENGTH)) + b"x" * (8 * MIB - to_bytes(LENGTH))
