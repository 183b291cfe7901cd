"""Whether a device is the one that it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.kernel.identity import difference, find
from tests.unit.kernel.tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    host = Tree(tmp_path / "host")
    host.disk("sda", "8:0")
    host.disk("sdb", "8:16")
    host.write("8:16", "wwid", "naa.5000c500a1b2c3d4")
    return host


def test_same_device_has_no_difference(tree: Tree) -> None:
    for devno in ("8:0", "8:16"):
        known = tree.sysfs().identity(devno)
        assert difference(known, known) is None
        assert find(known, tree.sysfs()) == devno


def test_name_for_ever_counts_more_than_the_number(tree: Tree) -> None:
    known = tree.sysfs().identity("8:16") | {"devno": "8:0", "kname": "sda"}
    assert find(known, tree.sysfs()) == "8:16"


def test_without_such_a_name_the_number_and_the_size_must_be_the_same(tree: Tree) -> None:
    known = tree.sysfs().identity("8:0")
    assert difference(known, known | {"devno": "8:32"}) == "devno"
    assert difference(known, known | {"size_bytes": 1}) == "size_bytes"
    assert find(known | {"size_bytes": 1}, tree.sysfs()) is None


def test_dm_device_without_uuid_is_known_by_its_name_not_by_its_number(tree: Tree) -> None:
    for number, name in enumerate(("other", "data")):
        tree.disk(f"dm-{number}", f"254:{number}")
        tree.write(f"254:{number}", "dm/name", name)
    known = tree.sysfs().identity("254:1") | {"devno": "254:0", "kname": "dm-0"}
    assert find(known, tree.sysfs()) == "254:1"
    assert difference(known, tree.sysfs().identity("254:0")) == "dm_name"
    assert difference(known, tree.sysfs().identity("8:0") | {"devno": "254:0"}) == "dm_name"


def test_device_that_is_gone_is_not_found(tree: Tree) -> None:
    known = tree.sysfs().identity("8:16") | {"wwn": "naa.other"}
    assert difference(known, tree.sysfs().identity("8:16")) == "wwn"
    assert find(known, tree.sysfs()) is None


def test_partitions_of_one_disk_are_told_apart_where_they_have_no_uuid(tree: Tree) -> None:
    for number in (1, 2):
        tree.partition("8:16", number, f"8:{16 + number}")
    known = tree.sysfs().identity("8:18")
    assert difference(known, tree.sysfs().identity("8:17")) == "partition"
    assert find({**known, "devno": "8:17"}, tree.sysfs()) == "8:18"


def test_partition_whose_uuid_the_kernel_does_not_tell_is_known_by_its_number(tree: Tree) -> None:
    tree.disk("vda", "253:0")
    tree.partition("253:0", 1, "253:1")
    tree.partition("253:0", 2, "253:2")
    known = tree.sysfs().identity("253:1") | {"partuuid": "from blkid"}
    assert difference(known, tree.sysfs().identity("253:1")) is None
    assert difference(known, tree.sysfs().identity("253:2")) is not None
    disk = tree.sysfs().identity("253:0") | {"devno": "253:1"}
    assert difference(known, disk) == "partuuid", "a disk is no partition"
