"""What a device is called for ever, and how it is found by that."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lasting import Lasting, find, lasting
from tests.unit.kernel.tree import Tree

PARTUUID = "02ec4730-2bcc-e84d-a066-ba43f2491b93"
MD_UUID = "3aaa0122:29827cfa:5331ad66:ca767371"


@pytest.fixture(autouse=True)
def no_udev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udev, "is_running", lambda: False)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    host = Tree(tmp_path / "host")
    host.disk("sda", "8:0")
    host.write("8:0", "device/wwid", "naa.5000c500a1b2c3d4")
    host.partition("8:0", 1, "8:1")
    host.disk("md7", "9:7")
    return host


def blkid(fp: FakeProcess, tree: Tree, name: str, said: str, *, status: int = 0) -> None:
    argv = ["blkid", "--probe", "--output", "export", "--", str(tree.dev / name)]
    fp.register(argv, stdout=said, returncode=status)


def mdadm(fp: FakeProcess, tree: Tree, name: str, said: str) -> None:
    argv = ["mdadm", "--detail", "--no-devices", "--export", str(tree.dev / name)]
    fp.register(argv, stdout=said)


def test_disk_is_known_by_its_wwn_and_a_virtual_one_by_its_serial(
    tree: Tree, run: Commander
) -> None:
    assert lasting("8:0", tree.sysfs(), run) == Lasting("wwn", "naa.5000c500a1b2c3d4")
    tree.disk("vda", "253:0")
    tree.write("253:0", "serial", "disk-7")
    assert lasting("253:0", tree.sysfs(), run) == Lasting("serial", "disk-7")


def test_partition_is_known_by_its_own_entry_and_never_by_its_disk(
    tree: Tree, run: Commander, fp: FakeProcess
) -> None:
    blkid(fp, tree, "sda1", f"PART_ENTRY_SCHEME=gpt\nPART_ENTRY_UUID={PARTUUID}\n")
    assert lasting("8:1", tree.sysfs(), run) == Lasting("partuuid", PARTUUID)
    blkid(fp, tree, "sda1", "", status=2)
    assert lasting("8:1", tree.sysfs(), run) is None


def test_newer_kernels_need_no_program(tree: Tree, run: Commander) -> None:
    tree.write("8:1", "uevent", f"PARTN=1\nPARTUUID={PARTUUID}")
    assert lasting("8:1", tree.sysfs(), run) == Lasting("partuuid", PARTUUID)
    tree.write("9:7", "md/uuid", "3aaa0122-2982-7cfa-5331-ad66ca767371")
    assert lasting("9:7", tree.sysfs(), run) == Lasting("md_uuid", MD_UUID)


def test_udev_is_asked_where_it_runs(
    tree: Tree, run: Commander, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"8:1": {"ID_PART_ENTRY_UUID": PARTUUID}, "9:7": {"MD_UUID": MD_UUID}}
    monkeypatch.setattr(udev, "is_running", lambda: True)
    monkeypatch.setattr(udev, "properties", known.__getitem__)
    assert lasting("8:1", tree.sysfs(), run) == Lasting("partuuid", PARTUUID)
    assert lasting("9:7", tree.sysfs(), run) == Lasting("md_uuid", MD_UUID)


def test_name_that_cannot_stand_in_a_rule_is_none(tree: Tree, run: Commander) -> None:
    for odd in ('a"b,RUN+="x', "a*b?", "x"):
        tree.disk(f"vd{len(odd)}", f"253:{len(odd)}")
        tree.write(f"253:{len(odd)}", "serial", odd)
        assert lasting(f"253:{len(odd)}", tree.sysfs(), run) is None


def test_it_is_found_by_its_name_whatever_it_is_called_now(
    tree: Tree, run: Commander, fp: FakeProcess
) -> None:
    name = Lasting("wwn", "naa.5000c500a1b2c3d4")
    assert find(name, tree.sysfs(), run) == ["8:0"], "and not its partition"
    tree.disk("sdb", "8:16")
    tree.write("8:16", "device/wwid", "naa.5000c500a1b2c3d4")
    assert find(name, tree.sysfs(), run) == ["8:0", "8:16"], "a second path to it, or a twin"
    mdadm(fp, tree, "md7", f"MD_LEVEL=raid1\nMD_UUID={MD_UUID}\n")
    assert find(Lasting("md_uuid", MD_UUID), tree.sysfs(), run) == ["9:7"]


def test_rule_says_what_is_to_match() -> None:
    (rule,) = Lasting("partuuid", PARTUUID).matches()
    assert rule == f'ENV{{DEVTYPE}}=="partition", ENV{{ID_PART_ENTRY_UUID}}=="{PARTUUID}"'
    assert len(Lasting("wwn", "naa.5").matches()) == 2, "NVMe and SCSI keep it in other places"
