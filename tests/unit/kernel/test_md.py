"""md's attributes, as a kernel 6.1 writes them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dmcopy.kernel.md import Md
from tests.unit.kernel.tree import Tree

MD = "9:127"
# as read from /sys/block/md127 in the lab (UML 6.1.176): raid5 of 4, recovering
RAID5 = {
    "md/array_state": "active",
    "md/chunk_size": "65536",
    "md/degraded": "1",
    "md/last_sync_action": "none",
    "md/level": "raid5",
    "md/mismatch_cnt": "0",
    "md/raid_disks": "4",
    "md/resync_start": "none",
    "md/sync_action": "recover",
    "md/sync_completed": "1280 / 20352",
    "md/uuid": "0671b7d5-90a8-5816-a121-72b2886b61d0",
    "queue/optimal_io_size": "196608",
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.disk("sda", "8:0")
    made.disk("md127", MD, slaves=("8:0",))
    for name, text in RAID5.items():
        made.write(MD, name, text)
    return made


def test_array_is_read(tree: Tree) -> None:
    array = Md(tree.sysfs()).read(MD)
    assert (array.path, array.level, array.disks, array.degraded) == ("/dev/md127", "raid5", 4, 1)
    assert (array.action, array.done, array.total) == ("recover", 1280 * 512, 20352 * 512)
    assert array.stripe == 3 * 65536
    assert not array.resync_due
    assert not array.is_mirror


def test_what_a_level_does_not_have_is_nothing(tree: Tree) -> None:
    for name in ("md/sync_action", "md/degraded", "md/sync_completed", "md/mismatch_cnt"):
        (tree.sys / "dev/block" / MD / name).unlink()
    tree.write(MD, "md/level", "raid0")
    array = Md(tree.sysfs()).read(MD)
    assert (array.action, array.degraded, array.done) == ("idle", 0, None)


@pytest.mark.parametrize("said", ["none", "delayed", ""])
def test_resync_that_md_says_nothing_of(tree: Tree, said: str) -> None:
    tree.write(MD, "md/sync_completed", said)
    assert Md(tree.sysfs()).read(MD).total is None


def test_mirror_has_no_stripes(tree: Tree) -> None:
    tree.write(MD, "md/level", "raid1")
    tree.write(MD, "md/chunk_size", "0")
    array = Md(tree.sysfs()).read(MD)
    assert array.stripe == 0
    assert array.is_mirror


def test_arrays_below_a_device_are_found(tree: Tree) -> None:
    tree.disk("dm-0", "254:0", slaves=(MD,))
    md = Md(tree.sysfs())
    assert [array.devno for array in md.below("254:0")] == [MD]
    assert [array.devno for array in md.below(MD)] == [MD]
    assert md.below("8:0") == []


def test_array_that_is_gone_is_an_error(tree: Tree) -> None:
    (tree.sys / "dev/block" / MD / "md/array_state").unlink()
    with pytest.raises(FileNotFoundError):
        Md(tree.sysfs()).read(MD)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EBUSY])
def test_array_that_is_stopped_while_somebody_looks_is_left_out(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    read = Path.read_text

    def refuse(path: Path, *args: str, **more: str) -> str:
        if path.name == "array_state":
            raise OSError(number, os.strerror(number))
        return read(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert Md(tree.sysfs()).below(MD) == []
