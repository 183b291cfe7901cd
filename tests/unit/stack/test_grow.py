"""Growing a COW device, against a device-mapper in memory; tests/lab has the real one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.core.table import Table
from dmcopy.errors import CowCannotGrow, DmcopyError, DmFailed
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack import grow, hold
from dmcopy.stack.cow import CowDevice, CowDevices, CowFileOnHost, CowLv, CowPlan
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.units import MIB, Bytes, Sectors, to_bytes, to_sectors
from tests.unit.fake_dm import FakeDm
from tests.unit.kernel.test_lvm import report
from tests.unit.kernel.tree import Tree

CHUNK = Sectors(128)
NAME = device_name("j", Role.COW)


@pytest.fixture(autouse=True)
def _no_dead_man(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test starts no process, and locks no memory."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise DmcopyError("not here")

    monkeypatch.setattr(hold, "DeadMan", refuse)
    monkeypatch.setattr(grow, "lock_memory", lambda: True)


class Host:
    """A job's COW device on a host of its own."""

    def __init__(self, base: Path, run: Commander, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dm = FakeDm()
        self.tree = Tree(base)
        self.file = base / "cow"
        self.lvm = Lvm(run)
        self.capacity: list[tuple[str, int]] = []
        monkeypatch.setattr(
            grow,
            "set_capacity",
            lambda path: self.capacity.append((path, self.file.stat().st_size)),
        )

    def grower(self, plan: CowPlan, table: str) -> grow.Growing:
        self.dm.add(NAME, table, uuid=device_uuid("j", Role.COW))
        return grow.grower(
            plan,
            job="j",
            dm=self.dm,
            sysfs=self.tree.sysfs(),
            lvm=self.lvm,
            chunk=CHUNK,
            hold_limit=1.0,
        )

    def on_file(self, *, most: int = 8 * MIB) -> grow.Growing:
        self.file.write_bytes(bytes(MIB))
        self.tree.disk("loop3", "7:3")
        plan = CowFileOnHost(
            path=self.file, size=Bytes(MIB), most=Bytes(most), chunk=CHUNK, why="--cow-max"
        )
        return self.grower(plan, f"0 {to_sectors(Bytes(MIB))} linear 7:3 0")

    @property
    def table(self) -> str:
        return str(self.dm.all[NAME].live)


@pytest.fixture
def host(tmp_path: Path, run: Commander, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, run, monkeypatch)


def test_file_and_loop_grow_before_the_table(host: Host) -> None:
    grower = host.on_file()
    assert grower.can_grow_to() == 8 * MIB
    assert grower.grow(Bytes(2 * MIB + 1)) == 2 * MIB + to_bytes(CHUNK)
    assert host.capacity == [(f"{host.tree.dev}/loop3", 2 * MIB + to_bytes(CHUNK))]
    assert host.table == "0 4224 linear 7:3 0"
    assert host.dm.calls == [f"load {NAME}", f"resume {NAME}"]
    assert len(grower.holds) == 1
    assert grower.size == 2 * MIB + to_bytes(CHUNK)


def test_it_never_shrinks(host: Host) -> None:
    grower = host.on_file()
    assert grower.grow(Bytes(4096)) == MIB
    assert host.file.stat().st_size == MIB
    assert host.dm.calls == []


def test_limit_is_kept_and_told(host: Host) -> None:
    grower = host.on_file(most=2 * MIB)
    assert grower.grow(Bytes(5 * MIB)) == 2 * MIB
    with pytest.raises(CowCannotGrow, match=r"COW file .* has reached its limit of 2\.0 MiB"):
        grower.grow(Bytes(5 * MIB))


def test_step_is_an_eighth_but_at_least_64_mib_and_ends_at_the_limit(host: Host) -> None:
    grower = host.on_file(most=80 * MIB)
    assert grower.step() == 65 * MIB
    host.dm.load(NAME, Table.parse(f"0 {to_sectors(Bytes(70 * MIB))} linear 7:3 0"))
    host.dm.resume(NAME)
    assert grower.step() == 80 * MIB


def no_room_behind(end: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a file system that is full at *end*; gives the pieces that were asked for."""
    pieces: list[int] = []

    def allocate(fd: int, offset: int, length: int) -> None:
        pieces.append(length)
        os.ftruncate(fd, min(end, offset + length))
        if offset + length > end:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    return pieces


def test_full_file_system_leaves_all_as_it_was(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    grower = host.on_file()
    no_room_behind(3 * MIB, monkeypatch)
    with pytest.raises(CowCannotGrow, match=r"No space left on device; .* are free in .*make room"):
        grower.grow(Bytes(4 * MIB))
    assert host.file.stat().st_size == MIB
    assert host.dm.calls == []
    assert host.capacity == []


def test_pieces_that_were_there_are_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grow, "_PIECE", Bytes(MIB))
    grower = host.on_file()
    pieces = no_room_behind(3 * MIB, monkeypatch)
    assert grower.grow(Bytes(6 * MIB)) == 3 * MIB
    assert pieces == [MIB, MIB, MIB]
    assert host.file.stat().st_size == 3 * MIB
    with pytest.raises(CowCannotGrow, match="No space left"):
        grower.grow(Bytes(6 * MIB))


def test_file_that_is_longer_already_is_not_cut(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was killed between the file and the table."""
    grower = host.on_file()
    os.truncate(host.file, 2 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr(grow, "_PIECE", Bytes(8 * MIB))
        no_room_behind(2 * MIB, patch)
        with pytest.raises(CowCannotGrow):
            grower.grow(Bytes(4 * MIB))
    assert host.file.stat().st_size == 2 * MIB
    assert grower.grow(Bytes(2 * MIB)) == 2 * MIB


def test_file_that_is_gone_is_told(host: Host) -> None:
    grower = host.on_file()
    host.file.unlink()
    with pytest.raises(CowCannotGrow, match="No such file"):
        grower.grow(Bytes(2 * MIB))


def test_swap_that_fails_leaves_the_old_table_and_can_be_tried_again(host: Host) -> None:
    grower = host.on_file()
    before = host.table
    host.dm.fail[f"resume {NAME}"] = DmFailed("resume", NAME, "Invalid argument")
    with pytest.raises(DmFailed):
        grower.grow(Bytes(2 * MIB))
    assert host.table == before
    assert host.dm.all[NAME].inactive is None
    host.dm.fail.clear()
    assert grower.grow(Bytes(2 * MIB)) == 2 * MIB


DEVICES = CowDevices(
    tuple(CowDevice(f"/dev/sd{n}", f"8:{n}", Sectors(128 * (n + 1))) for n in range(3))
)


def test_devices_are_appended_whole_and_in_order(host: Host) -> None:
    grower = host.grower(DEVICES, "0 128 linear 8:0 0")
    assert grower.can_grow_to() == to_bytes(Sectors(768))
    assert grower.grow(to_bytes(Sectors(129))) == to_bytes(Sectors(384))
    assert host.table == "0 128 linear 8:0 0\n128 256 linear 8:1 0"
    assert grower.grow(to_bytes(Sectors(9000))) == to_bytes(Sectors(768))
    assert host.table.splitlines()[2] == "384 384 linear 8:2 0"
    with pytest.raises(CowCannotGrow, match="/dev/sd0, /dev/sd1, /dev/sd2 has reached its limit"):
        grower.grow(to_bytes(Sectors(9000)))


@pytest.mark.parametrize("table", ["0 128 linear 9:9 0", "0 64 linear 8:0 0", "0 128 zero"])
def test_table_that_would_move_what_is_saved_is_never_loaded(host: Host, table: str) -> None:
    grower = host.grower(DEVICES, table)
    with pytest.raises(CowCannotGrow, match="is not that of the COW device on"):
        grower.grow(to_bytes(Sectors(300)))
    assert host.dm.calls == []


LV = CowLv(
    vg="dmct-vg", name="dmcopy_j", size=Bytes(4 * MIB), most=Bytes(999 * MIB), chunk=CHUNK,
    extent=Bytes(4 * MIB), why="--cow-max",
)  # fmt: skip


def on_lv(host: Host, fp: FakeProcess, mib: int) -> tuple[grow.Growing, list[int]]:
    """Have an LV of 4 MiB whose volume group ends at *mib*; gives the extents asked for too."""
    asked: list[int] = []
    host.tree.disk("dm-7", "254:7", size=to_sectors(Bytes(4 * MIB)))

    def extend(process: FakeProcess) -> None:
        extents = int(process.args[2])  # type: ignore[attr-defined]  # of the fake Popen
        asked.append(extents)
        if 4 * extents > mib:
            raise AssertionError("more than there is")
        host.tree.write("254:7", "size", str(to_sectors(Bytes(4 * extents * MIB))))

    for extents in range(2, 300):
        argv = ["lvextend", "--extents", str(extents), "--", "dmct-vg/dmcopy_j"]
        if 4 * extents > mib:
            fp.register(argv, returncode=5, stderr="Insufficient free space")
        else:
            fp.register(argv, callback=extend)
    return host.grower(LV, "0 8192 linear 254:7 0"), asked


def test_lv_is_extended_to_whole_extents_and_used_as_far_as_asked(
    host: Host, fp: FakeProcess
) -> None:
    grower, asked = on_lv(host, fp, 400)
    assert grower.grow(Bytes(9 * MIB)) == 9 * MIB
    assert asked == [3]
    assert host.table == f"0 {to_sectors(Bytes(9 * MIB))} linear 254:7 0"
    assert grower.grow(Bytes(12 * MIB)) == 12 * MIB
    assert asked == [3], "the room was there already"


def test_lv_takes_what_is_left_in_its_volume_group(host: Host, fp: FakeProcess) -> None:
    grower, asked = on_lv(host, fp, 124)
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")  # 120 MiB are free
    assert grower.grow(Bytes(200 * MIB)) == 124 * MIB
    assert asked == [31]


def test_volume_group_that_will_not_is_told_with_a_way_out(host: Host, fp: FakeProcess) -> None:
    grower, _ = on_lv(host, fp, 4)
    report(fp, "vgs", "dmct-vg", "vgs-two-pvs")
    with pytest.raises(CowCannotGrow, match=r"Insufficient free space; .*vgextend dmct-vg DEVICE"):
        grower.grow(Bytes(8 * MIB))
    assert host.dm.calls == []
