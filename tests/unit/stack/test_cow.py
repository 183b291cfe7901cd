"""What the COW device is made of, how large it begins, and how large it may become."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.errors import Refused, UsageError
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import (
    CowDevice,
    CowDevices,
    CowFileOnHost,
    CowLv,
    CowPlan,
    CowSpec,
    cow_from_json,
)
from dmcopy.stack.cow_plan import plan_cow
from dmcopy.units import GIB, MIB, Bytes, Sectors, to_bytes
from tests.unit.kernel.test_lvm import report
from tests.unit.kernel.tree import Tree

CHUNK = Sectors(128)
LENGTH = Sectors(64 * MIB // 512)
LARGE = Sectors(4 * GIB // 512)


@pytest.fixture
def lvm(run: Commander) -> Lvm:
    return Lvm(run)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("auto", CowSpec()),
        ("20971520", CowSpec(size=Bytes(20 * MIB))),
        ("/var/tmp/x:1073741824", CowSpec(file="/var/tmp/x", size=Bytes(1 << 30))),
        ("./x:y:4096", CowSpec(file="./x:y", size=Bytes(4096))),
        ("/dev/vg0/spare", CowSpec(devices=("/dev/vg0/spare",))),
        ("/dev/disk/by-path/pci-0:1", CowSpec(devices=("/dev/disk/by-path/pci-0:1",))),
        ("/dev/sdx,/dev/disk/a,b", CowSpec(devices=("/dev/sdx", "/dev/disk/a,b"))),
        ("vg:vg0", CowSpec(vg="vg0")),
        ("vg:my-vg.1:1048576", CowSpec(vg="my-vg.1", size=Bytes(1 << 20))),
    ],
)
def test_cow_argument_is_understood_and_can_be_said_again(text: str, spec: CowSpec) -> None:
    assert CowSpec.parse(text) == spec
    assert str(spec) == text
    assert spec.is_auto == (text == "auto")


def test_size_is_taken_with_its_unit() -> None:
    assert CowSpec.parse("vg:vg0:20m").size == CowSpec.parse("20m").size == 20 * MIB


@pytest.mark.parametrize(
    "text",
    ["", "x", "/var/tmp/x", "x:1g", "1q", "/var/tmp/x:", "-1g", "vg:", "vg:-x", "vg:x:", "vg:x:1q"],
)
def test_cow_argument_that_makes_no_sense_says_what_does(text: str) -> None:
    with pytest.raises(UsageError, match="say auto"):
        CowSpec.parse(text)


def _plan(
    spec: CowSpec,
    folder: Path,
    lvm: Lvm,
    *,
    length: Sectors = LENGTH,
    source: str = "254:9",
    sysfs: Sysfs | None = None,
) -> CowPlan:
    return plan_cow(
        spec,
        job="j",
        source=source,
        length=length,
        chunk=CHUNK,
        directory=folder / "cow",
        sysfs=sysfs or Sysfs(),
        lvm=lvm,
    )


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have 20 GiB free wherever one looks."""
    real = os.statvfs("/")
    fields = list(real)
    fields[0] = fields[1] = 4096  # f_bsize, f_frsize
    fields[4] = 20 * GIB // 4096  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))


@pytest.mark.usefixtures("roomy")
def test_small_auto_is_allocated_whole(tmp_path: Path, lvm: Lvm) -> None:
    plan = _plan(CowSpec(), tmp_path, lvm)
    assert isinstance(plan, CowFileOnHost)
    assert plan.path == tmp_path / "cow" / "dmcopy-j.cow"
    assert to_bytes(LENGTH) < plan.size < to_bytes(LENGTH) * 1.01
    assert plan.most == plan.size
    assert plan.size % to_bytes(CHUNK) == 0
    assert plan.how == f"file {plan.path}, 64.2 MiB (all that could be needed)"
    assert not plan.path.parent.exists()


@pytest.mark.usefixtures("roomy")
def test_large_auto_begins_with_an_eighth_and_may_take_all_that_is_needed(
    tmp_path: Path, lvm: Lvm
) -> None:
    plan = _plan(CowSpec(), tmp_path, lvm, length=LARGE)
    assert to_bytes(LARGE) < plan.most < to_bytes(LARGE) * 1.01
    assert plan.most // 8 - to_bytes(CHUNK) < to_bytes(plan.length) <= plan.most // 8
    assert plan.how.endswith("512.1 MiB, grows up to 4.0 GiB (all that could be needed)")


@pytest.mark.usefixtures("roomy")
def test_auto_takes_at_most_half_of_what_is_free(tmp_path: Path, lvm: Lvm) -> None:
    plan = _plan(CowSpec(), tmp_path, lvm, length=Sectors(1 << 40))
    assert plan.most == 10 * GIB == to_bytes(plan.length)
    assert plan.how.endswith(f"10.0 GiB (half of what is free in {tmp_path}/cow)")


@pytest.mark.usefixtures("roomy")
def test_cow_max_limits_growth_and_the_beginning(tmp_path: Path, lvm: Lvm) -> None:
    plan = _plan(CowSpec(most=Bytes(GIB)), tmp_path, lvm, length=LARGE)
    assert plan.how.endswith("512.1 MiB, grows up to 1.0 GiB (--cow-max)")
    plan = _plan(CowSpec(most=Bytes(100 * MIB)), tmp_path, lvm, length=LARGE)
    assert plan.how.endswith("100.0 MiB (--cow-max)")


@pytest.mark.usefixtures("roomy")
def test_size_of_the_users_grows_only_when_he_says_how_far(tmp_path: Path, lvm: Lvm) -> None:
    size = Bytes(100 * MIB)
    plan = _plan(CowSpec(size=size), tmp_path, lvm, length=LARGE)
    assert plan.most == to_bytes(plan.length) == size
    assert plan.how.endswith("100.0 MiB (as asked for)")
    plan = _plan(CowSpec(size=size, most=Bytes(GIB)), tmp_path, lvm, length=LARGE)
    assert plan.how.endswith("100.0 MiB, grows up to 1.0 GiB (--cow-max)")
    plan = _plan(CowSpec(size=size, most=Bytes(9 * GIB)), tmp_path, lvm, length=LARGE)
    assert plan.how.endswith("100.0 MiB, grows up to 4.0 GiB (all that could be needed)")


def test_cow_max_below_the_size_is_a_mistake(tmp_path: Path, lvm: Lvm) -> None:
    with pytest.raises(UsageError, match=r"--cow-max 10\.0 MiB is less"):
        _plan(CowSpec(size=Bytes(20 * MIB), most=Bytes(10 * MIB)), tmp_path, lvm)


def test_file_that_exists_is_never_taken(tmp_path: Path, lvm: Lvm) -> None:
    (tmp_path / "x").write_text("precious")
    with pytest.raises(Refused, match="exists"):
        _plan(CowSpec.parse(f"{tmp_path}/x:10m"), tmp_path, lvm)


@pytest.mark.parametrize(("size", "said"), [("4k", "too small"), ("900t", "no room")])
def test_size_that_cannot_work_is_refused(tmp_path: Path, lvm: Lvm, size: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        _plan(CowSpec.parse(size), tmp_path, lvm)


def test_missing_device_is_a_mistake_of_the_command_line(tmp_path: Path, lvm: Lvm) -> None:
    with pytest.raises(UsageError, match="/dev/no-such"):
        _plan(CowSpec.parse("/dev/no-such"), tmp_path, lvm)


# devices and volume groups, in a tree of their own


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    for number, size in enumerate((2000, 4096)):
        tree.disk(f"loop{number}", f"7:{number}", size=size)
        tree.node(f"/dev/loop{number}", f"7:{number}")
    return tree


def test_devices_are_used_in_order_and_as_far_as_whole_chunks_go(tree: Tree, lvm: Lvm) -> None:
    spec = CowSpec.parse("/dev/loop0,/dev/loop1")
    plan = _plan(spec, tree.base, lvm, sysfs=tree.sysfs())
    assert plan.devices == (
        CowDevice("/dev/loop0", "7:0", Sectors(1920)),
        CowDevice("/dev/loop1", "7:1", Sectors(4096)),
    )
    assert plan.length == 1920
    assert plan.most == to_bytes(Sectors(1920 + 4096))
    assert plan.how == "device /dev/loop0, 960.0 KiB, then /dev/loop1, 2.0 MiB"
    assert str(plan) == "devices /dev/loop0, /dev/loop1"


def test_devices_take_no_cow_max(tree: Tree, lvm: Lvm) -> None:
    spec = CowSpec(devices=("/dev/loop0",), most=Bytes(GIB))
    with pytest.raises(UsageError, match="--cow-max is for a COW file or LV"):
        _plan(spec, tree.base, lvm, sysfs=tree.sysfs())


def test_device_smaller_than_a_chunk_is_refused(tree: Tree, lvm: Lvm) -> None:
    tree.disk("sda", "8:0", size=127)
    tree.node("/dev/sda", "8:0")
    with pytest.raises(Refused, match="smaller than one chunk"):
        _plan(CowSpec(devices=("/dev/sda",)), tree.base, lvm, sysfs=tree.sysfs())


def test_logical_volume_is_of_whole_extents_and_whole_chunks(
    tree: Tree, lvm: Lvm, fp: FakeProcess
) -> None:
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")
    spec = CowSpec(vg="dmct-vg", size=Bytes(9 * MIB), most=Bytes(21 * MIB))
    plan = _plan(spec, tree.base, lvm, sysfs=tree.sysfs())
    assert isinstance(plan, CowLv)
    assert (plan.size, plan.most) == (12 * MIB, 20 * MIB)
    assert plan.extents(plan.size) == 3
    assert plan.how == (
        "logical volume dmct-vg/dmcopy_j, 12.0 MiB, grows up to 20.0 MiB (--cow-max)"
    )


def test_volume_group_without_a_size_gives_at_most_half(
    tree: Tree, lvm: Lvm, fp: FakeProcess
) -> None:
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")
    plan = _plan(CowSpec(vg="dmct-vg"), tree.base, lvm, sysfs=tree.sysfs())
    assert plan.how == (
        "logical volume dmct-vg/dmcopy_j, 60.0 MiB (half of what is free in volume group dmct-vg)"
    )


def test_volume_group_with_too_little_room_is_told(tree: Tree, lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")
    with pytest.raises(Refused, match=r"COW device of 200\.0 MiB .* 120\.0 MiB are free"):
        _plan(CowSpec(vg="dmct-vg", size=Bytes(200 * MIB)), tree.base, lvm, sysfs=tree.sysfs())


def test_volume_group_that_is_not_there_is_a_mistake(tree: Tree, lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "vgs", "nosuch", "vgs-missing", status=5, stderr='  Volume group "nosuch" not found')
    with pytest.raises(UsageError, match=r'--cow vg:nosuch: .*"nosuch" not found'):
        _plan(CowSpec(vg="nosuch"), tree.base, lvm, sysfs=tree.sysfs())


def test_volume_group_on_the_source_is_refused(tree: Tree, lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")
    with pytest.raises(Refused, match="lies on the device that is being copied"):
        _plan(CowSpec(vg="dmct-vg"), tree.base, lvm, sysfs=tree.sysfs(), source="7:1")


def test_volume_group_that_lacks_a_device_is_refused(
    tmp_path: Path, lvm: Lvm, fp: FakeProcess
) -> None:
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")
    with pytest.raises(Refused, match="lacks /dev/loop0"):
        _plan(CowSpec(vg="dmct-vg"), tmp_path, lvm, sysfs=Tree(tmp_path).sysfs())


# the record

CHUNKS: dict[str, Any] = {"chunk": CHUNK, "why": "as asked for"}  # Any: of several types


@pytest.mark.parametrize(
    "plan",
    [
        CowDevices((CowDevice("/dev/a", "8:0", Sectors(8)), CowDevice("/dev/b", "8:1", CHUNK))),
        CowFileOnHost(path=Path("/x/y"), size=Bytes(MIB), most=Bytes(2 * MIB), **CHUNKS),
        CowLv(vg="v", name="l", extent=Bytes(MIB), size=Bytes(MIB), most=Bytes(2 * MIB), **CHUNKS),
    ],
)
def test_plan_is_read_back_from_its_record(plan: CowPlan) -> None:
    assert cow_from_json(json.loads(json.dumps(plan.as_json()))) == plan
