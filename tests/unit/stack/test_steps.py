"""The lines that a dry run shows."""

from __future__ import annotations

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.core.table import Table
from dmcopy.errors import DmcopyError
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.cow import CowLv
from dmcopy.stack.steps import CreateDevice, CreateLv, with_table
from dmcopy.units import MIB, Bytes, Sectors
from tests.unit.fake_dm import FakeDm
from tests.unit.kernel.test_lvm import report

ONE = Table.parse("0 8 linear 8:0 0")
TWO = Table.parse("0 8 linear 8:0 0\n8 8 linear 8:16 0")


def test_table_of_one_line_stands_in_the_command() -> None:
    assert with_table(["dmsetup", "load", "a b"], ONE) == (
        "dmsetup load 'a b' --table '0 8 linear 8:0 0'"
    )


def test_longer_table_goes_in_by_stdin() -> None:
    assert with_table(["dmsetup", "load", "x"], TWO) == f"dmsetup load x <<'END'\n{TWO}\nEND"


def test_device_is_created_and_removed_and_only_if_it_is_ours() -> None:
    dm = FakeDm()
    step = CreateDevice(dm, "dmcopy-j-snap", "DMCOPY-j-snap", lambda: ONE)
    assert step.devno() == "/dev/mapper/dmcopy-j-snap"
    step.undo()  # never done
    step.do()
    assert step.devno() == dm.all["dmcopy-j-snap"].devno
    step.undo()
    step.undo()
    assert dm.all == {}
    dm.add("dmcopy-j-snap", str(ONE), uuid="somebody else's")
    step.undo()
    assert list(dm.all) == ["dmcopy-j-snap"]


LV = CowLv(
    vg="dmct-vg", name="dmcopy_x", size=Bytes(8 * MIB), most=Bytes(8 * MIB), chunk=Sectors(128),
    extent=Bytes(4 * MIB), why="as asked for",
)  # fmt: skip
LVCREATE = (
    "lvcreate --yes --type linear --zero y --wipesignatures n --extents 2 --name dmcopy_x "
    "--addtag dmcopy --addtag dmcopy-job-x -- dmct-vg"
)
LVREMOVE = ["lvremove", "--force", "--yes", "--", "dmct-vg/dmcopy_x"]


def test_lv_is_made_as_the_line_says_and_removed(run: Commander, fp: FakeProcess) -> None:
    step = CreateLv(LV, "x", Lvm(run))
    assert step.lines() == (LVCREATE,)
    assert step.devno() == "/dev/dmct-vg/dmcopy_x"
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-no-tag")
    fp.register(LVCREATE.split())
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-tag")
    step.do()
    assert step.devno() == "254:0"
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-tag")
    fp.register(LVREMOVE)
    step.undo()
    assert fp.call_count(LVREMOVE) == 1


def test_lv_that_was_there_before_stays(run: Commander, fp: FakeProcess) -> None:
    step = CreateLv(LV, "x", Lvm(run))
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-tag")
    with pytest.raises(DmcopyError, match=r"is there already; .*dmcopy rescue x"):
        step.do()
    step.undo()  # lvremove is not registered: it would fail


def test_lv_that_is_not_active_is_no_cow_device(run: Commander, fp: FakeProcess) -> None:
    step = CreateLv(LV, "x", Lvm(run))
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-no-tag")
    fp.register(LVCREATE.split())
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-inactive")
    with pytest.raises(DmcopyError, match="is not active"):
        step.do()
