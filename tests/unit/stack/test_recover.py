"""Rescue, from nothing but what the kernel holds."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.core.table import Table
from dmcopy.errors import DmBusy, DmcopyError
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack import hold, steps
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.recover import find_remains, remove_files, remove_lvs, take_apart
from tests.unit.fake_dm import Asked, FakeDm
from tests.unit.kernel.test_lvm import report

TABLE = "0 2048 linear 8:0 0"


@pytest.fixture(autouse=True)
def _no_dead_man(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test starts no process; the swap at a rescue is done all the same."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise DmcopyError("not here")

    monkeypatch.setattr(hold, "DeadMan", refuse)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(str(tmp_path / "sys"), str(tmp_path / "proc"), str(tmp_path / "dev"))


def _add(dm: FakeDm, role: Role, table: str) -> str:
    return dm.add(device_name("j", role), table, uuid=device_uuid("j", role)).devno


@pytest.fixture
def dm() -> FakeDm:
    """A job that was killed in mid-copy."""
    return _in_mid_copy()


def _in_mid_copy() -> FakeDm:
    dm = FakeDm()
    source = _add(dm, Role.SOURCE, TABLE)
    cow = _add(dm, Role.COW, "0 512 linear 7:0 0")
    _add(dm, Role.SNAP, f"0 2048 snapshot {source} {cow} P 128")
    dm.add("data", f"0 2048 snapshot-origin {source}", opened=1)
    dm.add("other", "0 8 linear 8:16 0", uuid="LVM-x")
    return dm


def test_job_may_end_at_any_moment_while_somebody_looks_for_it(sysfs: Sysfs) -> None:
    moments = 0
    while True:
        dm = _in_mid_copy()

        def end(dm: FakeDm = dm) -> None:
            dm.all["data"].live = Table.parse(TABLE)
            for role in (Role.SNAP, Role.COW, Role.SOURCE):
                del dm.all[device_name("j", role)]

        dm.asked = asked = Asked(moments, end)
        found = find_remains(dm, sysfs)
        assert set(found) <= {"j"}
        if not asked.has_come:
            break
        moments += 1
    assert moments > len(dm.all), "as often as the kernel is asked"
    assert found["j"].origins, "what was looked for is found where nothing happens"


def test_spliced_origin_gets_its_table_back_before_anything_is_removed(
    dm: FakeDm, sysfs: Sysfs
) -> None:
    remains = find_remains(dm, sysfs)
    assert list(remains) == ["j"]
    done, left, _ = take_apart(dm, remains["j"])
    assert left == ()
    assert "gave data its table back" in done
    assert str(dm.all["data"].live) == TABLE
    assert set(dm.all) == {"data", "other"}
    assert dm.calls[:2] == ["load data", "resume data"]
    assert find_remains(dm, sysfs) == {}


def test_braked_origin_is_let_go_and_gets_its_table_back(dm: FakeDm, sysfs: Sysfs) -> None:
    source = dm.all[device_name("j", Role.SOURCE)].devno
    gate = _add(dm, Role.GATE, f"0 2048 snapshot-origin {source}")
    brake = _add(dm, Role.BRAKE, f"0 2048 delay {gate} 0 0 {gate} 0 500 {gate} 0 0")
    meter = _add(dm, Role.METER, f"0 2048 linear {brake} 0")
    dm.all["data"].live = Table.parse(f"0 2048 linear {meter} 0")
    dm.all[device_name("j", Role.GATE)].suspended = True
    done, left, _ = take_apart(dm, find_remains(dm, sysfs)["j"])
    assert left == ()
    assert "gave data its table back" in done
    name = device_name("j", Role.BRAKE)
    assert dm.calls[2:6] == [f"load {name}", f"resume {name}", "load data", "resume data"]
    assert dm.calls[:2] == [f"{verb} {device_name('j', Role.GATE)}" for verb in ("clear", "resume")]
    assert str(dm.all["data"].live) == TABLE
    assert set(dm.all) == {"data", "other"}


def test_loaded_table_of_ours_is_dropped(dm: FakeDm, sysfs: Sysfs) -> None:
    data = dm.all["data"]
    data.live, data.inactive = dm.all[device_name("j", Role.SOURCE)].live, data.live
    done, left, _ = take_apart(dm, find_remains(dm, sysfs)["j"])
    assert left == ()
    assert "dropped the loaded table of data" in done
    assert data.inactive is None
    assert str(data.live) == TABLE


def test_table_that_somebody_else_loaded_is_left_alone(dm: FakeDm, sysfs: Sysfs) -> None:
    foreign = dm.all["other"].live
    dm.all["data"].live = dm.all["data"].inactive = foreign
    take_apart(dm, find_remains(dm, sysfs)["j"])
    assert dm.all["data"].live == dm.all["data"].inactive == foreign


def test_suspended_origin_is_resumed_with_its_own_table(dm: FakeDm, sysfs: Sysfs) -> None:
    dm.all["data"].suspended = True
    take_apart(dm, find_remains(dm, sysfs)["j"])
    assert not dm.all["data"].suspended
    assert str(dm.all["data"].live) == TABLE


def test_device_that_is_held_is_named_and_the_others_go(
    dm: FakeDm, sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_BUSY_SECONDS", 0.0)
    snap = device_name("j", Role.SNAP)
    dm.fail[f"remove {snap}"] = DmBusy("remove", snap, "Device or resource busy")
    done, left, _ = take_apart(dm, find_remains(dm, sysfs)["j"])
    assert any(snap in line for line in left)
    assert "gave data its table back" in done
    assert str(dm.all["data"].live) == TABLE


LVM_UUID = f"LVM-{'x' * 64}"


def test_suspended_cow_device_and_lv_go_on_before_the_origin_is_swapped(
    dm: FakeDm, sysfs: Sysfs
) -> None:
    """A write of the origin's may wait for them, and the swap for that write."""
    lv = dm.add("vg-dmcopy_j", "0 512 linear 8:16 0", uuid=LVM_UUID)
    lv.suspended = dm.all[device_name("j", Role.COW)].suspended = True
    _, left, _ = take_apart(dm, find_remains(dm, sysfs)["j"])
    assert left == ()
    assert dm.calls[:3] == ["resume vg-dmcopy_j", "resume dmcopy-j-cow", "load data"]
    assert not lv.suspended


def test_active_lv_is_all_that_need_be_left_of_a_job(sysfs: Sysfs) -> None:
    dm = FakeDm()
    dm.add("vg-dmcopy_j", "0 512 linear 8:16 0", uuid=LVM_UUID)
    dm.add("vg-other", "0 512 linear 8:16 512", uuid=LVM_UUID)
    found = find_remains(dm, sysfs)
    assert list(found) == ["j"]
    assert found["j"].lines() == ["logical volume /dev/mapper/vg-dmcopy_j"]
    assert take_apart(dm, found["j"])[:2] == ((), ())
    assert set(dm.all) == {"vg-dmcopy_j", "vg-other"}, "LVM removes it, if it has the tag"


@pytest.fixture
def lvm(run: Commander, monkeypatch: pytest.MonkeyPatch) -> Lvm:
    monkeypatch.setattr(run, "find", lambda program: f"/sbin/{program}")
    return Lvm(run)


def test_lvs_of_the_job_are_removed(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", "@dmcopy-job-x", "lvs-tag")
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-tag")
    fp.register(["lvremove", "--force", "--yes", "--", "dmct-vg/dmcopy_x"])
    assert remove_lvs(lvm, "x") == (["removed logical volume dmct-vg/dmcopy_x"], [])


def test_lv_that_cannot_be_removed_is_named(lvm: Lvm, fp: FakeProcess) -> None:
    report(fp, "lvs", "@dmcopy-job-x", "lvs-tag")
    report(fp, "lvs", "dmct-vg/dmcopy_x", "lvs-tag")
    argv = ["lvremove", "--force", "--yes", "--", "dmct-vg/dmcopy_x"]
    fp.register(argv, returncode=5, stderr="Logical volume dmct-vg/dmcopy_x in use.")
    done, left = remove_lvs(lvm, "x")
    assert done == []
    assert left == [
        "cannot remove logical volume dmct-vg/dmcopy_x: lvremove returned 5: "
        "Logical volume dmct-vg/dmcopy_x in use."
    ]


def test_host_without_lvm_has_no_lvs(run: Commander, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find", lambda program: None)
    assert remove_lvs(Lvm(run), "x") == ([], [])


def test_files_are_removed_and_missing_ones_are_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "cow"
    file.write_text("x")
    done, left = remove_files([str(file), str(tmp_path / "gone")])
    assert (done, left) == ([f"removed {file}"], [])
    assert not file.exists()


def test_file_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    done, left = remove_files([str(tmp_path)])
    assert done == []
    assert str(tmp_path) in left[0]
