"""Block devices, sysfs, loop devices and udev on a real kernel, against the tools' word."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dmcopy.kernel import loop, udev
from dmcopy.kernel.blkdev import BlockDevice, pread_full, pwrite_full
from dmcopy.kernel.loop import LoopDevice, list_loops
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import MIB, Bytes
from tests.lab.scene import until
from tests.lab.stage import Stage, sh

pytestmark = pytest.mark.lab


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("blkdev")
    yield made
    made.close()


@pytest.fixture
def sysfs() -> Sysfs:
    return Sysfs()


@pytest.mark.parametrize("sector", [512, 4096])
def test_facts_are_those_that_blockdev_gives(stage: Stage, sysfs: Sysfs, sector: int) -> None:
    disk = stage.disk(16, sector=sector)
    with BlockDevice.open(disk) as device:
        size = int(sh("blockdev", "--getsize64", disk))
        assert device.size == size == sysfs.size(device.devno)
        assert device.sectors == size // 512
        assert device.logical_block == sector == sysfs.queue(device.devno).logical_block
        assert not device.read_only
        sh("blockdev", "--setro", disk)
        assert device.read_only
        assert sysfs.is_read_only(device.devno)
        sh("blockdev", "--setrw", disk)
    assert sysfs.devno_of(disk) == device.devno


def test_exclusive_claim_keeps_others_out(stage: Stage) -> None:
    disk = stage.disk()
    with BlockDevice.open(disk, write=True, exclusive=True):
        with pytest.raises(OSError, match="busy") as caught:
            BlockDevice.open(disk, exclusive=True)
        assert caught.value.errno == errno.EBUSY
        BlockDevice.open(disk, write=True).close()
    BlockDevice.open(disk, exclusive=True).close()


def test_direct_io_needs_alignment_and_full_io_does_the_rest(stage: Stage) -> None:
    disk = stage.disk()
    with BlockDevice.open(disk, write=True) as device, mmap.mmap(-1, 4 * MIB) as pages:
        view = memoryview(pages)
        view[:] = os.urandom(4 * MIB)
        kept = bytes(view)
        pwrite_full(device.fd, view, MIB)
        view[:] = bytes(4 * MIB)
        pread_full(device.fd, view, MIB)
        assert bytes(view) == kept
        with pytest.raises(OSError, match="Invalid argument"):
            pread_full(device.fd, view[:512], 100)
        with pytest.raises(OSError, match="end of device"):
            pread_full(device.fd, view, device.size - 512)
        with pytest.raises(OSError, match="No space left"):
            pwrite_full(device.fd, view, device.size - 512)
        view.release()


def test_zero_makes_zeroes_and_discard_is_taken(stage: Stage) -> None:
    disk = stage.disk()
    with open(disk, "r+b") as writer:
        writer.write(b"x" * MIB)
    with BlockDevice.open(disk, write=True) as device:
        device.zero(Bytes(4096), Bytes(8192))
        device.flush()
        device.discard(Bytes(MIB), Bytes(MIB))
        with pytest.raises(OSError, match="Invalid argument"):
            device.zero(Bytes(100), Bytes(512))
    with open(disk, "rb") as reader:
        found = reader.read(MIB)
    assert found == b"x" * 4096 + bytes(8192) + b"x" * (MIB - 12288)


def test_device_that_grows_is_seen_to_grow(stage: Stage) -> None:
    disk = stage.disk(16)
    path = stage.linear(disk, 2048)
    with BlockDevice.open(path) as device:
        assert device.sectors == 2048
        sh("dmsetup", "reload", path, "--table", f"0 4096 linear {disk} 0")
        sh("dmsetup", "resume", path)
        assert device.sectors == 4096


def test_tower_is_walked_both_ways(stage: Stage, sysfs: Sysfs) -> None:
    disk = stage.disk(64)
    part = stage.partition(disk)
    linear = stage.linear(part)
    point = stage.filesystem(linear)
    top_disk = stage.disk(file=stage.file(3, folder=point))
    md = stage.md(top_disk)
    top = stage.linear(md)
    tower = [sysfs.devno_of(path) for path in (disk, part, linear, top_disk, md, top)]
    under = sysfs.below(tower[0])  # a loop over a tmpfs: nothing
    assert under == frozenset()
    for number, devno in enumerate(tower):
        assert sysfs.below(devno) == set(tower[:number])
        assert sysfs.above(devno) == set(tower[number + 1 :])
    assert sysfs.devices_of(point) == {tower[2]}
    assert sysfs.parent(tower[1]) == tower[0]
    assert sysfs.partitions(tower[0]) == {tower[1]}
    assert sysfs.mounts_of(tower[2]) == [point]


def test_loop_over_a_deleted_file_or_a_device_is_seen(stage: Stage, sysfs: Sysfs) -> None:
    disk = stage.disk(16)
    over_device = stage.disk(file=disk)
    assert sysfs.below(sysfs.devno_of(over_device)) == {sysfs.devno_of(disk)}
    other = stage.disk(16)
    point = stage.filesystem(other)
    file = stage.file(1, folder=point)
    over_file = stage.disk(file=file)
    os.unlink(file)
    assert sysfs.below(sysfs.devno_of(over_file)) == {sysfs.devno_of(other)}


def test_mount_is_found_by_any_name_and_bind_mounts_too(stage: Stage, sysfs: Sysfs) -> None:
    linear = stage.linear(stage.disk(16))
    point = stage.filesystem(linear)
    devno = sysfs.devno_of(linear)
    other_name = os.path.join(stage.folder, "other")
    os.mknod(other_name, 0o60600, os.stat(linear).st_rdev)
    assert sysfs.mounts_of(sysfs.devno_of(other_name)) == [point]
    second = os.path.join(stage.folder, "bind")
    os.mkdir(second)
    sh("mount", "--bind", point, second)
    stage.later(sh, "umount", second)
    assert sysfs.mounts_of(devno) == [point, second]


def test_swap_is_found(stage: Stage, sysfs: Sysfs) -> None:
    linear = stage.linear(stage.disk(16))
    sh("mkswap", "--quiet", linear)
    assert not sysfs.is_swap(sysfs.devno_of(linear))
    sh("swapon", linear)
    stage.later(sh, "swapoff", linear)
    assert sysfs.is_swap(sysfs.devno_of(linear))


@contextmanager
def holder(disk: str, mode: str) -> Iterator[int]:
    """Have another process open *disk*; give its pid."""
    argv = [sys.executable, "-c", f"held = open('{disk}', '{mode}'); print(); input()"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_openers_are_found_with_their_way_of_opening(stage: Stage, sysfs: Sysfs) -> None:
    disk = stage.disk()
    devno = sysfs.devno_of(disk)
    with holder(disk, "rb") as pid, BlockDevice.open(disk, write=True):
        assert pid in [pid for pid, _ in sysfs.openers(devno)]
        assert sysfs.openers(devno, writing=True) == [], "our own do not count"
    with holder(disk, "r+b") as pid:
        assert [pid for pid, _ in sysfs.openers(devno, writing=True, lasting=0.2)] == [pid]
    assert sysfs.openers(devno, lasting=10.0) == [], "udev looks for a moment only"


def test_writes_are_counted(stage: Stage, sysfs: Sysfs) -> None:
    disk = stage.disk()
    devno = sysfs.devno_of(disk)
    before = sysfs.writes(devno)
    with BlockDevice.open(disk, write=True) as device, mmap.mmap(-1, 4096) as page:
        os.preadv(device.fd, [page], 0)
        assert sysfs.writes(devno) == before
        os.pwritev(device.fd, [page], 0)
        assert sysfs.writes(devno) == before + 1
        device.discard(Bytes(0), Bytes(4096))
        assert sysfs.writes(devno) == before + 2


def test_node_of_every_device_opens_it(stage: Stage, sysfs: Sysfs) -> None:
    for path in (stage.linear(stage.disk()), stage.partition(stage.disk(16))):
        devno = sysfs.devno_of(path)
        assert sysfs.devno_of(sysfs.node(devno)) == devno


def test_identity_of_dm_and_loop(stage: Stage, sysfs: Sysfs) -> None:
    file = stage.file(1)
    disk = stage.disk(file=file)
    linear = stage.linear(disk)
    assert sysfs.identity(sysfs.devno_of(disk))["backing_file"] == file
    assert sysfs.identity(sysfs.devno_of(linear))["dm_name"] == os.path.basename(linear)


def test_loop_goes_away_with_its_last_user(stage: Stage, sysfs: Sysfs) -> None:
    file = stage.file(4)
    with LoopDevice.attach(file) as device:
        assert sysfs.loop_backing_file(device.devno) == file
        assert loop.Loop(device.devno, file) in list_loops(sysfs)
        assert sysfs.size(device.devno) == 4 * MIB
        assert sysfs.queue(device.devno).logical_block == 512
        extra = BlockDevice.open(device.path)
    assert sysfs.loop_backing_file(device.devno) == file  # still open by the second one
    extra.close()
    # udev may look into it for a moment yet, and a loop device goes with its last user only
    until(lambda: file not in sysfs.loops().values(), "the loop device went", patience=10)


def test_loop_without_autoclear_stays_until_it_is_detached(stage: Stage, sysfs: Sysfs) -> None:
    file = stage.file(4)
    device = LoopDevice.attach(file, autoclear=False)
    device.leave()
    assert sysfs.loop_backing_file(device.devno) == file
    udev.settle(5)
    loop.clear(device.path)
    until(lambda: sysfs.loop_backing_file(device.devno) == "", "it was detached", patience=10)


def test_loop_reads_directly_where_the_file_system_can(stage: Stage, sysfs: Sysfs) -> None:
    point = stage.filesystem(stage.disk(32))
    for folder, direct in ((point, "1"), (stage.folder, "0")):  # ext4; tmpfs
        with LoopDevice.attach(stage.file(1, folder=folder)) as device:
            assert (sysfs.folder(device.devno) / "loop" / "dio").read_text().strip() == direct


def test_read_only_loop_cannot_be_written(stage: Stage, sysfs: Sysfs) -> None:
    with LoopDevice.attach(stage.file(1), read_only=True) as device:
        assert sysfs.is_read_only(device.devno)


def test_many_at_a_time_get_a_loop_device_each(stage: Stage, sysfs: Sysfs) -> None:
    files = [stage.file(1) for _ in range(24)]
    got: dict[str, LoopDevice] = {}

    def attach(file: str) -> None:
        got[file] = LoopDevice.attach(file)

    threads = [threading.Thread(target=attach, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert sorted(got) == sorted(files)
        for file, device in got.items():
            assert sysfs.loop_backing_file(device.devno) == file
        assert len({device.devno for device in got.values()}) == len(files)
    finally:
        for device in got.values():
            device.detach()
        udev.settle(10)


def test_udev_knows_a_device_where_it_runs(stage: Stage, sysfs: Sysfs) -> None:
    disk = stage.disk()
    assert udev.settle(10)
    known = udev.properties(sysfs.devno_of(disk))
    assert known["DEVNAME"] == disk
    assert udev.is_running() == os.path.exists("/run/udev/control")
