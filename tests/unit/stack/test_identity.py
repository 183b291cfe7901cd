"""What cannot get a new identity is refused, and labels are not their sources'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.errors import Refused
from dmcopy.kernel.command import Commander, launch_subprocess
from dmcopy.kernel.content import Content, Part
from dmcopy.stack.identity import _label, by_hand, check
from dmcopy.units import Sectors

DATA = Path(__file__).parents[2] / "data"
PATH = "/dev/x"
EXT4 = Content(kind="ext4", uuid="u")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Commander:
    made = Commander(launch_subprocess)
    monkeypatch.setattr(made, "find", lambda program: f"/sbin/{program}")
    return made


def pvs(fp: FakeProcess, **row: str) -> None:
    argv = ["pvs", "--devices", PATH, "--reportformat", "json", "--options"]
    said = json.dumps({"report": [{"pv": [row]}]})
    fp.register([*argv, "vg_name,pv_count,vg_missing_pv_count"], stdout=said)


def refused(run: Commander, content: Content | None, words: str) -> None:
    with pytest.raises(Refused, match=words):
        check(run, PATH, content)


def test_nothing_and_what_is_not_known_are_refused(run: Commander) -> None:
    refused(run, None, "nothing that has an identity")
    refused(run, Content(kind="zfs_member"), "zfs_member, whose identity dmcopy does not know")


def test_unknown_content_of_a_partition_is_refused(run: Commander) -> None:
    part = Part(number=2, start=Sectors(8), length=Sectors(8), uuid="p", content=EXT4)
    check(run, PATH, Content(kind="gpt", parts=(part,)))
    odd = Part(
        number=3, start=Sectors(16), length=Sectors(8), uuid="q", content=Content(kind="vfat")
    )
    refused(run, Content(kind="gpt", parts=(part, odd)), "partition 3 of /dev/x carries vfat")


def test_missing_tool_is_named(run: Commander, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find", lambda program: None)
    refused(run, Content(kind="btrfs"), "carries btrfs, and btrfstune is not installed")


def test_journal_elsewhere_is_refused(run: Commander, fp: FakeProcess) -> None:
    argv = ["tune2fs", "-l", "--", PATH]
    fp.register(argv, stdout="Journal UUID:             1234\nJournal device:\t          0x0701\n")
    refused(run, EXT4, "has its journal on another device")
    fp.register(
        argv, stdout="Journal inode:            8\nJournal backup:           inode blocks\n"
    )
    check(run, PATH, EXT4)


@pytest.mark.parametrize(("count", "is_fine"), [("1", True), ("2", False)])
def test_volume_group_of_several_volumes_is_refused(
    run: Commander, fp: FakeProcess, count: str, *, is_fine: bool
) -> None:
    pvs(fp, vg_name="data", pv_count=count, vg_missing_pv_count="0")
    if is_fine:
        check(run, PATH, Content(kind="LVM2_member"))
    else:
        refused(run, Content(kind="LVM2_member"), "volume group data on /dev/x has 2")


@pytest.mark.parametrize(("devices", "is_fine"), [("1", True), ("2", False)])
def test_btrfs_of_several_devices_is_refused(
    run: Commander, fp: FakeProcess, devices: str, *, is_fine: bool
) -> None:
    said = f"total_bytes\t\t1\nnum_devices\t\t{devices}\n"
    fp.register(["btrfs", "inspect-internal", "dump-super", "--", PATH], stdout=said)
    if is_fine:
        check(run, PATH, Content(kind="btrfs"))
    else:
        refused(run, Content(kind="btrfs"), "more than this one device")


def test_only_a_mirror_runs_from_one_member(run: Commander, fp: FakeProcess) -> None:
    argv = ["mdadm", "--examine", "--export", PATH]
    said = (DATA / "mdadm-4.2-examine-raid1.txt").read_text()
    fp.register(argv, stdout=said)
    check(run, PATH, Content(kind="linux_raid_member"))
    fp.register(argv, stdout=said.replace("raid1", "raid5"))
    refused(run, Content(kind="linux_raid_member"), "member of a raid5 array")


@pytest.mark.parametrize(
    ("old", "most", "new"),
    [
        ("data", 16, "data-1f3c"),
        ("a-label-of-16-by", 16, "a-label-of--1f3c"),
        ("a-label-of--1f3c", 16, "a-label-of--1f3c"[:11] + "-1f3c"),
        ("\u00fcberl\u00e4nge", 12, "\u00fcberl-1f3c"),
    ],
)
def test_label_fits_and_says_where_it_comes_from(old: str, most: int, new: str) -> None:
    assert _label(old, "1f3c0000", most) == new
    assert len(new.encode()) <= most


def test_by_hand_names_the_device() -> None:
    assert by_hand(Content(kind="btrfs"), PATH) == "btrfstune -u /dev/x"
    assert by_hand(Content(kind="zfs_member"), PATH) == ""
