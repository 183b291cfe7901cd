"""Sysfs against trees of its own; tests/lab holds it against a real kernel."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from dmcopy.kernel.diskstat import IoTimes
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Sectors
from tests.unit.kernel.tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_below_and_above_go_through_partition_file_system_loop_md_and_dm(tree: Tree) -> None:
    disk = tree.disk("sda", "8:0")
    part = tree.partition(disk, 1, "8:1")
    for number in (0, 1):
        tree.put_file(f"/srv/{number}.img", part)
    loops = tuple(tree.loop(n, f"/srv/{n}.img") for n in (0, 1))
    md = tree.disk("md0", "9:0", slaves=loops)
    dm = tree.disk("dm-0", "253:0", slaves=(md,))
    sysfs = tree.sysfs()
    assert sysfs.below(dm) == {md, *loops, part, disk}
    assert sysfs.above(disk) == {part, *loops, md, dm}
    assert sysfs.below(disk) == frozenset()
    assert sysfs.above(dm) == frozenset()
    assert sysfs.slaves(md) == set(loops)
    assert sysfs.holders(md) == {dm}


def test_partitions_of_one_disk_are_not_related(tree: Tree) -> None:
    disk = tree.disk("nvme0n1", "259:0")
    first = tree.partition(disk, 1, "259:1", infix="p")
    second = tree.partition(disk, 2, "259:2", infix="p")
    dm = tree.disk("dm-0", "253:0", slaves=(first,))
    sysfs = tree.sysfs()
    assert sysfs.partitions(disk) == {first, second}
    assert sysfs.parent(first) == disk
    assert sysfs.parent(disk) is None
    assert sysfs.below(dm) == {first, disk}
    assert second not in sysfs.below(dm) | sysfs.above(first)


def test_bcache_has_its_backing_and_its_cache_device_below(tree: Tree) -> None:
    backing, cache = tree.disk("sdb", "8:16"), tree.disk("nvme0n1", "259:0")
    bcache = tree.disk("bcache0", "252:0", slaves=(backing, cache))
    assert tree.sysfs().below(bcache) == {backing, cache}
    assert tree.sysfs().above(cache) == {bcache}


def test_loop_made_from_a_block_device_lies_on_it(tree: Tree) -> None:
    disk = tree.disk("sdb", "8:16")
    loop = tree.loop(0, str(tree.dev / "sdb"))
    assert tree.sysfs().below(loop) == {disk}
    assert tree.sysfs().above(disk) == {loop}


def test_loop_over_a_deleted_file_lies_where_its_directory_is(tree: Tree) -> None:
    disk = tree.disk("sdb", "8:16")
    tree.put_file("/srv", disk)
    loop = tree.loop(0, "/srv/x.img (deleted)")
    assert tree.sysfs().below(loop) == {disk}
    assert tree.sysfs().loops() == {loop: "/srv/x.img (deleted)"}


def test_loop_over_a_file_on_btrfs_lies_on_all_its_devices(tree: Tree) -> None:
    one, two = tree.disk("sdb", "8:16"), tree.disk("sdc", "8:32")
    family = tree.sys / "fs/btrfs/0c8a/devices"
    family.mkdir(parents=True)
    for devno in (one, two):
        folder = (tree.sys / "dev/block" / devno).resolve()
        (family / folder.name).symlink_to(folder)
    # stat() says 0:61 (the subvolume), mountinfo 0:40 (the superblock): as on a real btrfs
    tree.mount("0:40", "/data", "btrfs", str(tree.dev / "sdb"), "rw,subvolid=5")
    tree.put_file("/data/sub/x.img", "0:61")
    loop = tree.loop(0, "/data/sub/x.img")
    assert tree.sysfs().below(loop) == {one, two}
    assert tree.sysfs().mounts_of(two) == ["/data"]


def test_file_on_an_overlay_is_where_its_upper_directory_is(tree: Tree) -> None:
    disk = tree.disk("sda", "8:0")
    tree.put_file("/upper", disk)
    tree.mount("0:9", "/", "overlay", "root", "rw,lowerdir=/l,upperdir=/upper,workdir=/w")
    tree.put_file("/srv/x.img", "0:9")
    assert tree.sysfs().devices_of("/srv/x.img") == {disk}
    assert tree.sysfs().mounts_of(disk) == ["/"]


def test_file_on_a_tmpfs_is_on_no_device(tree: Tree) -> None:
    tree.mount("0:5", "/tmp", "tmpfs", "tmpfs")
    tree.put_file("/tmp/x", "0:5")
    assert tree.sysfs().devices_of("/tmp/x") == frozenset()
    assert tree.sysfs().devices_of("/nowhere") == frozenset()


def test_mounts_are_found_by_number_whatever_the_name(tree: Tree) -> None:
    dm = tree.disk("dm-0", "253:0")
    tree.mount(dm, "/srv/my\\040data", "ext4", "/dev/mapper/vg-data")
    tree.mount("8:1", "/other", "ext4", "/dev/sda1")
    assert tree.sysfs().mounts_of(dm) == ["/srv/my data"]


def test_swap_is_found_by_number(tree: Tree) -> None:
    dm, disk = tree.disk("dm-0", "253:0"), tree.disk("sda", "8:0")
    tree.node("/dev/mapper/my swap", dm)
    tree.swaps(["/dev/mapper/my\\040swap"])
    assert tree.sysfs().is_swap(dm)
    assert not tree.sysfs().is_swap(disk)


def test_openers_are_named_and_readers_can_be_left_out(tree: Tree) -> None:
    disk = tree.disk("sdb", "8:16")
    node = str(tree.dev / "sdb")
    tree.process(31, "qemu", {3: ("/dev/null", os.O_RDWR), 9: (node, os.O_RDWR | os.O_DIRECT)})
    tree.process(7, "blkid", {3: (node, os.O_RDONLY)})
    tree.process(8, "sh", {0: ("pipe:[123]", os.O_RDONLY)})
    assert tree.sysfs().openers(disk) == [(7, "blkid"), (31, "qemu")]
    assert tree.sysfs().openers(disk, writing=True) == [(31, "qemu")]


def test_opener_that_goes_is_left_out_of_the_lasting_ones(tree: Tree) -> None:
    disk = tree.disk("sdb", "8:16")
    node = str(tree.dev / "sdb")
    tree.process(7, "mdadm", {3: (node, os.O_RDWR)})
    tree.process(31, "qemu", {9: (node, os.O_RDWR)})
    tree.process(32, "gone", {3: (node, os.O_RDWR)})
    (tree.proc / "32/comm").unlink()  # it ended before its name could be read
    tree.process(os.getpid(), "dmcopy", {3: (node, os.O_RDWR)})
    assert tree.sysfs().openers(disk, writing=True) == [(7, "mdadm"), (31, "qemu")]
    going = threading.Timer(0.1, shutil.rmtree, [tree.proc / "7"])
    going.start()
    assert tree.sysfs().openers(disk, writing=True, lasting=0.3) == [(31, "qemu")]
    going.join()
    assert tree.sysfs().openers(disk, writing=True) == [(31, "qemu")]


def test_node_is_found_without_udev(tree: Tree) -> None:
    dm = tree.disk("dm-0", "253:0")
    assert tree.sysfs().node(dm) == str(tree.dev / "dm-0")
    tree.node(str(tree.dev / "dm-0"), "8:0")  # a wrong node by that name
    mapper = tree.dev / "mapper" / "data"
    mapper.parent.mkdir()
    mapper.touch()
    tree.node(str(mapper), dm)
    assert tree.sysfs().node(dm) == str(mapper)


def test_node_that_is_nowhere_is_said_to_be_missing(tree: Tree) -> None:
    dm = tree.disk("dm-0", "253:0")
    tree.node(str(tree.dev / "dm-0"), "8:0")
    with pytest.raises(FileNotFoundError):
        tree.sysfs().node(dm)


def test_devno_of_a_file_is_refused(tree: Tree) -> None:
    tree.put_file("/srv/x", "8:1")
    with pytest.raises(OSError, match="/srv/x") as caught:
        tree.sysfs().devno_of("/srv/x")
    assert caught.value.errno == errno.ENOTBLK


def test_unknown_device_raises(tree: Tree) -> None:
    for ask in (tree.sysfs().below, tree.sysfs().above, tree.sysfs().size, tree.sysfs().kname):
        with pytest.raises(FileNotFoundError):
            ask("99:9")


def test_queue_of_a_partition_is_its_disks(tree: Tree) -> None:
    disk = tree.disk("sda", "8:0")
    part = tree.partition(disk, 1, "8:1")
    tree.write(disk, "queue/logical_block_size", "4096")
    tree.write(disk, "queue/optimal_io_size", "196608")
    assert tree.sysfs().queue(part).logical_block == 4096
    assert tree.sysfs().queue(part).optimal_io == 196608
    assert tree.sysfs().queue(part).write_zeroes_max == 0


def test_writes_counts_writes_and_discards(tree: Tree) -> None:
    disk = tree.disk("sda", "8:0")
    tree.write(disk, "stat", "1 2 3 4 500 6 7 8 9 10 11 33 13 14 15 16 17")
    assert tree.sysfs().writes(disk) == 533
    tree.write(disk, "stat", "1 2 3 4 500 6 7 8 9 10 11")  # before v4.18
    assert tree.sysfs().writes(disk) == 500


def test_io_times_are_those_of_writes_alone(tree: Tree) -> None:
    dm = tree.disk("dm-0", "253:0")
    tree.write(dm, "stat", "1 2 3 4 500 6 70000 8000 9 10 11 33 13 14 15 16 17")
    assert tree.sysfs().io_times(dm) == IoTimes(500, Sectors(70000), 8000, 33)
    tree.write(dm, "stat", "1 2 3 4 501 6 70008 8001 9 10 11")  # before v4.18
    assert tree.sysfs().io_times(dm) == IoTimes(501, Sectors(70008), 8001, 0)


def test_milliseconds_that_wrapped_round_are_no_step_back() -> None:
    before = IoTimes(10, Sectors(80), (1 << 32) - 5, 1)
    after = IoTimes(12, Sectors(96), 20, 1)
    assert after.since(before) == IoTimes(2, Sectors(16), 25, 0)


def test_identity_names_what_lasts(tree: Tree) -> None:
    disk = tree.disk("sda", "8:0", size=2048)
    part = tree.partition(disk, 2, "8:2")
    tree.write(disk, "device/wwid", "naa.5000c500a1b2c3d4")
    tree.write(part, "uevent", "MAJOR=8\nDEVTYPE=partition\nPARTUUID=0b1e-02")
    page = (tree.sys / "dev/block" / disk).resolve() / "device" / "vpd_pg80"
    page.write_bytes(b"\0\x80\0\x08  Z1D2X3")
    assert tree.sysfs().identity(part) == {
        "devno": "8:2",
        "kname": "sda2",
        "size_bytes": 1024 * 512,
        "wwn": "naa.5000c500a1b2c3d4",
        "serial": "Z1D2X3",
        "partuuid": "0b1e-02",
        "partition": "2",
    }


def test_identity_of_dm_and_loop(tree: Tree) -> None:
    dm = tree.disk("dm-0", "253:0")
    tree.write(dm, "dm/name", "vg-data")
    tree.write(dm, "dm/uuid", "LVM-abc")
    loop = tree.loop(0, "/srv/x.img")
    assert tree.sysfs().identity(dm)["dm_uuid"] == "LVM-abc"
    assert tree.sysfs().dm_name(dm) == "vg-data"
    assert tree.sysfs().dm_uuid(loop) == ""
    assert tree.sysfs().identity(loop)["backing_file"] == "/srv/x.img"


def test_name_with_a_slash_in_it_has_its_node_in_a_directory(tree: Tree) -> None:
    disk = tree.disk("cciss!c0d0", "104:0")
    assert tree.sysfs().node(disk) == str(tree.dev / "cciss" / "c0d0")


def test_device_that_goes_between_open_and_read_is_gone(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tree.disk("sda", "8:0")

    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(FileNotFoundError):
        tree.sysfs().size(disk)


def test_this_hosts_own_devices_can_be_read() -> None:
    sysfs = Sysfs()
    for devno in sorted(path.name for path in Path("/sys/dev/block").iterdir()):
        assert sysfs.identity(devno)["devno"] == devno
        assert sysfs.queue(devno).logical_block >= 512
        assert sysfs.io_times(devno).writes >= 0
        assert devno not in sysfs.below(devno) | sysfs.above(devno)
