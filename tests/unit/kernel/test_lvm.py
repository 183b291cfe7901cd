"""LVM's tools, from what they really said; tests/lab runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.errors import CommandFailed, DmcopyError, Refused
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lvm import Lv, Lvm, Vg
from dmcopy.units import MIB, Bytes

DATA: Final = Path(__file__).parents[2] / "data"
FIELDS: Final = {
    "vgs": "vg_name,vg_extent_size,vg_free,pv_name",
    "lvs": "vg_name,lv_name,lv_size,lv_tags,lv_kernel_major,lv_kernel_minor",
}
TAG: Final = "dmcopy-job-x"


def report(
    fp: FakeProcess, program: str, what: str, data: str, *, status: int = 0, stderr: str = ""
) -> None:
    """Have vgs or lvs say what was recorded."""
    options = ["--reportformat", "json", "--units", "b", "--nosuffix", "--options"]
    vg, slash, lv = what.partition("/")
    words = ["--select", f"lv_name={lv}", "--", vg] if slash else ["--", what]
    fp.register(
        [program, *options, FIELDS[program], *words],
        stdout=(DATA / f"lvm-2.03.16-{data}.json").read_text(),
        stderr=stderr,
        returncode=status,
    )


@pytest.fixture
def lvm(run: Commander) -> Lvm:
    return Lvm(run)


def test_volume_group_tells_its_room_and_its_devices(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")
    assert lvm.vg("dmct-vg") == Vg(
        "dmct-vg", Bytes(4 * MIB), Bytes(120 * MIB), ("/dev/loop0", "/dev/loop1")
    )


def test_missing_volume_group_is_told_in_the_tools_words(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "vgs", "nosuch", "vgs-missing", status=5, stderr='Volume group "nosuch" not found')
    with pytest.raises(CommandFailed, match=r'vgs returned 5: .*"nosuch" not found'):
        lvm.vg("nosuch")


def test_volumes_are_found_by_tag(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", f"@{TAG}", "lvs-tag")
    tags = frozenset({"dmcopy", TAG})
    assert lvm.find(TAG) == [Lv("dmct-vg", "dmcopy_x", Bytes(8 * MIB), tags, "254:0")]
    report(fp, "lvs", "@dmcopy-job-y", "lvs-no-tag")
    assert lvm.find("dmcopy-job-y") == []


def test_volume_that_is_not_active_has_no_number(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-inactive")
    found = lvm.lv("dmct-vg", "dmcopy_x")
    assert found is not None
    assert found.devno is None


def test_missing_volume_is_none_but_a_missing_group_is_a_failure(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", "dmct-vg/nosuch", "lvs-no-tag")
    assert lvm.lv("dmct-vg", "nosuch") is None
    report(fp, "lvs", "nosuch/x", "lvs-missing", status=5)
    with pytest.raises(CommandFailed, match="lvs returned 5"):
        lvm.lv("nosuch", "x")


def test_report_that_is_none_is_a_failure(lvm: Lvm, fp: FakeProcess) -> None:
    fp.register(["vgs", fp.any()], stdout="  WARNING: no report\n")
    with pytest.raises(DmcopyError, match="vgs gave no report on v"):
        lvm.vg("v")


def test_volume_with_our_tag_is_removed(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-tag")
    argv = ["lvremove", "--force", "--yes", "--", "dmct-vg/dmcopy_x"]
    fp.register(argv)
    assert lvm.remove("dmct-vg", "dmcopy_x", tag=TAG)
    assert fp.call_count(argv) == 1


def test_volume_that_is_gone_is_no_failure(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-no-tag")
    assert not lvm.remove("dmct-vg", "dmcopy_x", tag=TAG)


def test_volume_without_our_tag_is_never_removed(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", "dmct-vg/other", "lvs-untagged")
    with pytest.raises(Refused, match=f"dmct-vg/other does not carry the tag {TAG}"):
        lvm.remove("dmct-vg", "other", tag=TAG)  # lvremove is not registered: it would fail
