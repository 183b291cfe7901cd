"""Each refusal of a block device, over a made-up host; tests/lab has them all for real."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.destinations.base import Surroundings
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.refusal import (
    refuse_other,
    refuse_signature,
    refuse_unfit,
    refuse_use,
    refusing,
)
from dmcopy.errors import Refused
from dmcopy.kernel.command import Commander, launch_subprocess
from dmcopy.units import Sectors
from tests.unit.kernel.tree import Tree

DATA = Path(__file__).parents[2] / "data"
SOURCE, TARGET = "8:0", "8:16"
LENGTH = Sectors(2048)
PATH = "/dev/sdb"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    host = Tree(tmp_path)
    host.disk("sda", SOURCE)
    host.disk("sdb", TARGET)
    return host


def around(tree: Tree, source: str = SOURCE, spare: tuple[str, ...] = ()) -> Surroundings:
    run = Commander(launch_subprocess)
    return Surroundings(sysfs=tree.sysfs(), run=run, source=source, spare=frozenset(spare))


def test_idle_device_is_not_refused(tree: Tree) -> None:
    refuse_use(PATH, TARGET, around(tree))
    refuse_unfit(PATH, TARGET, LENGTH, around(tree))


def test_mounted_device_and_mounted_partition_are_refused(tree: Tree) -> None:
    part = tree.partition(TARGET, 1, "8:17")
    tree.mount(part, "/srv", "ext4", "/dev/sdb1")
    with pytest.raises(Refused, match=r"^/dev/sdb is|^sdb1, a partition of /dev/sdb, is mounted"):
        refuse_use(PATH, TARGET, around(tree))
    with pytest.raises(Refused, match=r"/dev/sdb1 is mounted on /srv; unmount it or"):
        refuse_use("/dev/sdb1", part, around(tree))


def test_swap_is_refused(tree: Tree) -> None:
    tree.swaps([str(tree.dev / "sdb")])
    with pytest.raises(Refused, match="is in use as swap; swapoff"):
        refuse_use(PATH, TARGET, around(tree))


def test_device_under_dm_md_or_loop_is_refused(tree: Tree) -> None:
    dm = tree.disk("dm-0", "253:0", slaves=(TARGET,))
    tree.write(dm, "dm/name", "vg-data")
    with pytest.raises(Refused, match="is part of /dev/mapper/vg-data"):
        refuse_use(PATH, TARGET, around(tree))


def test_device_under_a_loop_is_refused_though_o_excl_would_be_granted(tree: Tree) -> None:
    tree.loop(3, str(tree.dev / "sdb"))
    with pytest.raises(Refused, match="under the loop device /dev/loop3"):
        refuse_use(PATH, TARGET, around(tree))


def test_device_that_a_program_writes_is_refused_though_o_excl_would_be_granted(
    tree: Tree,
) -> None:
    tree.process(7, "qemu-kvm", {9: (str(tree.dev / "sdb"), os.O_RDWR)})
    with pytest.raises(Refused, match=r"open for writing by qemu-kvm \(pid 7\)"):
        refuse_use(PATH, TARGET, around(tree))


def test_our_own_descriptor_is_no_reason_to_refuse(tree: Tree) -> None:
    tree.process(os.getpid(), "dmcopy", {9: (str(tree.dev / "sdb"), os.O_RDWR)})
    refuse_use(PATH, TARGET, around(tree))


def test_source_and_all_below_and_above_it_are_refused(tree: Tree) -> None:
    part = tree.partition(SOURCE, 1, "8:1")
    dm = tree.disk("dm-0", "253:0", slaves=(part,))
    top = tree.disk("dm-1", "253:1", slaves=(dm,))
    for devno, why in (
        (dm, "is the source itself"),
        (part, "holds the source"),
        (SOURCE, "holds the source"),
        (top, "lies on the source"),
    ):
        with pytest.raises(Refused, match=why):
            refuse_use("/dev/x", devno, around(tree, source=dm))


def test_devices_of_the_job_and_what_they_are_made_of_are_refused(tree: Tree) -> None:
    cow = tree.disk("dm-0", "253:0", slaves=(TARGET,))
    with pytest.raises(Refused, match="in use by this job already"):
        refuse_use("/dev/dm-0", cow, around(tree, spare=(cow,)))
    with pytest.raises(Refused, match="shares its data with"):
        refuse_use(PATH, TARGET, around(tree, spare=(cow,)))


def test_read_only_small_or_coarse_devices_are_unfit(tree: Tree) -> None:
    with pytest.raises(Refused, match=r"too small: 1048576 bytes .*the source has 1049088"):
        refuse_unfit(PATH, TARGET, Sectors(LENGTH + 1), around(tree))
    tree.write(SOURCE, "queue/logical_block_size", "512")
    tree.write(TARGET, "queue/logical_block_size", "4096")
    with pytest.raises(Refused, match="logical blocks of 4096 bytes, the source of 512"):
        refuse_unfit(PATH, TARGET, LENGTH, around(tree))
    refuse_unfit("/dev/sda", SOURCE, LENGTH, around(tree, source=TARGET))
    tree.write(TARGET, "ro", "1")
    with pytest.raises(Refused, match="is read-only; blockdev --setrw /dev/sdb"):
        refuse_unfit(PATH, TARGET, LENGTH, around(tree))


def test_signature_is_refused_with_what_it_is(tree: Tree, fp: FakeProcess) -> None:
    argv = ["wipefs", "--no-act", "--json", "--output", "OFFSET,TYPE,USAGE,LABEL,UUID", "--", PATH]
    fp.register(argv, stdout=(DATA / "wipefs-2.38.1-ext4-and-dos.json").read_text())
    with pytest.raises(Refused, match=r"carries ext4 \(label data\), dos; .*overwrite-signature"):
        refuse_signature(PATH, around(tree))
    fp.register(argv, stdout=(DATA / "wipefs-2.38.1-nothing.json").read_text())
    refuse_signature(PATH, around(tree))


def test_another_device_under_the_same_path_is_refused(tree: Tree) -> None:
    tree.write(TARGET, "device/wwid", "naa.1")
    before = around(tree)
    old = before.sysfs.identity(TARGET)

    def known(identity: dict[str, str | int]) -> Surroundings:
        return Surroundings(sysfs=before.sysfs, run=before.run, source=SOURCE, identity=identity)

    refuse_other(PATH, TARGET, known(old))
    refuse_other(PATH, TARGET, known(old | {"devno": "8:32"}))  # a new boot, the same disk
    with pytest.raises(Refused, match=r"wwn is naa\.1, was naa\.2"):
        refuse_other(PATH, TARGET, known(old | {"wwn": "naa.2"}))
    with pytest.raises(Refused, match="size_bytes"):
        refuse_other(PATH, TARGET, known(old | {"size_bytes": 512}))
    with pytest.raises(Refused, match="devno is 8:16, was 8:32"):
        refuse_other(PATH, TARGET, known({"devno": "8:32"}))
    refuse_other(PATH, TARGET, before)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (errno.ENOENT, "there is no device /dev/sdb"),
        (errno.ENXIO, "there is no device"),
        (errno.ENOTBLK, "not a block device; write image:/dev/sdb"),
        (errno.EBUSY, "is claimed by another"),
        (errno.EROFS, "may not be written"),
        (errno.EACCES, "may not be written: Permission denied; run as root"),
        (errno.EIO, "cannot be opened: Input/output error"),
    ],
)
def test_each_answer_of_open_has_its_own_words(code: int, why: str) -> None:
    with pytest.raises(Refused, match=why), refusing(PATH):
        raise OSError(code, os.strerror(code))


def test_missing_device_is_refused_and_not_made(tmp_path: Path, tree: Tree) -> None:
    destination = BlockDestination.parse(str(tmp_path / "dev" / "sdz"))
    with pytest.raises(Refused, match="there is no device"):
        destination.check(LENGTH, around(tree))
    with pytest.raises(Refused, match="there is no device"), destination.open(LENGTH, around(tree)):
        pass
    assert not os.path.lexists(destination.path)
