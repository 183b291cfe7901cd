"""Where a destination is now, and whether it was pulled out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.destinations.block import BlockDestination
from dmcopy.errors import DestinationFailed, Interrupted
from dmcopy.jobs import whereabouts
from dmcopy.jobs.whereabouts import destination_now, is_gone, unplugged_is_interrupted
from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander
from dmcopy.kernel.identity import Identity
from tests.unit.kernel.tree import Tree


@pytest.fixture(autouse=True)
def _no_udev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udev, "is_running", lambda: False)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "host")
    for number, name in enumerate(("sda", "sdb")):
        made.disk(name, f"8:{16 * number}")
        made.write(f"8:{16 * number}", "device/wwid", f"naa.{number}")
    return made


def recorded(tree: Tree, devno: str) -> Identity:
    sysfs = tree.sysfs()
    return {"path": sysfs.node(devno), **sysfs.identity(devno)}


def test_disk_in_another_slot_is_found_and_its_old_path_is_a_strangers(
    tree: Tree, run: Commander
) -> None:
    old = {**recorded(tree, "8:16"), "path": str(tree.dev / "sda"), "devno": "8:0", "kname": "sda"}
    found = destination_now(f"block:{tree.dev}/sda", old, tree.sysfs(), run)
    assert found.destination == BlockDestination(str(tree.dev / "sdb"))
    assert (found.identity["devno"], found.identity["kname"]) == ("8:16", "sdb")
    assert is_gone(old, tree.sysfs())
    assert not is_gone(found.identity, tree.sysfs())


def test_disk_that_is_where_it_was_keeps_its_record(tree: Tree, run: Commander) -> None:
    old = recorded(tree, "8:0")
    found = destination_now("block:/whatever", old, tree.sysfs(), run)
    assert found.identity is old
    assert found.destination == BlockDestination(str(tree.dev / "sda"))


def test_disk_that_is_not_there_keeps_its_path_and_a_file_is_a_file(
    tree: Tree, run: Commander
) -> None:
    old = {**recorded(tree, "8:0"), "wwn": "naa.other"}
    found = destination_now("block:/whatever", old, tree.sysfs(), run)
    assert found.destination == BlockDestination(str(tree.dev / "sda"))
    assert is_gone(old, tree.sysfs())
    file = {"path": "/backup/x"}
    assert str(destination_now("image:/backup/x", file, tree.sysfs(), run).destination) == (
        "image:/backup/x"
    )
    assert not is_gone(file, tree.sysfs())


def test_partition_that_only_blkid_can_tell_is_found_by_its_uuid(
    tree: Tree, run: Commander, fp: FakeProcess
) -> None:
    tree.disk("vda", "253:0")
    tree.partition("253:0", 1, "253:1")
    old = {**recorded(tree, "253:1"), "partuuid": "0ab1-22", "devno": "252:1", "kname": "vdz1",
           "path": str(tree.dev / "vdz1")}  # fmt: skip
    argv = ["blkid", "--probe", "--output", "export", "--", str(tree.dev / "vda1")]
    fp.register(argv, stdout="PART_ENTRY_UUID=0ab1-22\n")
    found = destination_now("block:/whatever", old, tree.sysfs(), run)
    assert found.destination == BlockDestination(str(tree.dev / "vda1"))
    assert not is_gone(found.identity, tree.sysfs())


def fails(identity: Identity, tree: Tree) -> None:
    with unplugged_is_interrupted(identity, tree.sysfs()):
        raise DestinationFailed("cannot write: Input/output error")


def test_destination_that_was_pulled_out_is_an_interruption(tree: Tree) -> None:
    old = {**recorded(tree, "8:0"), "devno": "8:32"}
    with pytest.raises(Interrupted, match="sda was unplugged while it was written"):
        fails(old, tree)


def test_destination_that_fails_and_stays_has_failed(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(whereabouts, "_GOING", 0.1)
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(DestinationFailed):
        fails(recorded(tree, "8:0"), tree)
    assert waited, "what was pulled out fails first, and goes then"
    waited.clear()
    tree.disk("dm-0", "253:0")
    with pytest.raises(DestinationFailed):
        fails(recorded(tree, "253:0"), tree)
    assert not waited, "it cannot be pulled out"


def test_link_that_leads_to_the_disk_under_another_number_is_followed(
    tree: Tree, run: Commander
) -> None:
    old = {**recorded(tree, "8:16"), "devno": "8:0", "kname": "sda"}
    found = destination_now("block:/whatever", old, tree.sysfs(), run)
    assert found.destination == BlockDestination(str(tree.dev / "sdb"))
    assert not is_gone(found.identity, tree.sysfs())
