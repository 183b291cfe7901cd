"""What is known of a job's devices when the machine was started again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmcopy.errors import Refused
from dmcopy.jobs.after_boot import cow_of, room_on_record, store_now
from dmcopy.jobs.journal import Logged, Record
from dmcopy.jobs.state import State
from dmcopy.stack.cow import CowDevice, CowDevices, CowFileOnHost
from dmcopy.units import MIB, Bytes, Sectors, sectors_down
from tests.unit.kernel.tree import Tree

FILE = CowFileOnHost(
    path=Path("/cow"), size=Bytes(4 * MIB), most=Bytes(64 * MIB), chunk=Sectors(128), why="told"
)


def devices(folder: Path) -> CowDevices:
    return CowDevices(
        (
            CowDevice(str(folder / "sda"), "8:0", Sectors(1024)),
            CowDevice(str(folder / "sdb"), "8:16", Sectors(2048)),
        )
    )


def record(progress: dict[str, Any] | None) -> Record:  # Any: JSON
    return Record(
        name="job", state=State.COPYING, created=0.0, changed=0.0, lost=None, spec={},
        begun={}, progress=progress, ended=None, facts={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("progress", "grown", "mib"),
    [
        (None, [], 4),
        ({"cow_total_bytes": None}, [], 4),
        ({"cow_total_bytes": 8 * MIB}, [], 8),
        ({"cow_total_bytes": 4 * MIB}, [8 * MIB, 16 * MIB], 16),
        ({"cow_total_bytes": 16 * MIB}, [8 * MIB], 16),
    ],
)
def test_cow_device_had_at_least_the_largest_size_on_record(
    progress: dict[str, Any] | None,  # Any: JSON
    grown: list[int],
    mib: int,
) -> None:
    log = [Logged(0.0, {"event": "warning", "message": "?"})]
    log += [Logged(0.0, {"event": "grown", "cow_total_bytes": size}) for size in grown]
    assert room_on_record(FILE, record(progress), log) == sectors_down(Bytes(mib * MIB))


def test_devices_that_were_not_used_yet_are_no_room() -> None:
    assert room_on_record(devices(Path("/dev")), record(None), []) == 1024


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    host = Tree(tmp_path / "host")
    host.disk("sdb", "8:0")
    return host


def test_cow_devices_have_the_numbers_of_this_boot(tree: Tree) -> None:
    tree.disk("sda", "8:16")
    known = devices(tree.dev)
    facts = {"cow": known.as_json()}
    cow = cow_of(facts, tree.sysfs(), rebooted=True, copied=False)
    assert cow is not None
    assert [device.devno for device in cow.devices] == ["8:16", "8:0"]
    assert cow_of(facts, tree.sysfs(), rebooted=False, copied=False) == known


def test_missing_cow_device_is_asked_for_until_all_is_copied(tree: Tree) -> None:
    facts = {"cow": devices(tree.dev).as_json()}
    with pytest.raises(Refused, match=r"sda: .*; attach it, then resume again"):
        cow_of(facts, tree.sysfs(), rebooted=True, copied=False)
    cow = cow_of(facts, tree.sysfs(), rebooted=True, copied=True)
    assert cow is not None
    assert [device.path for device in cow.devices] == [str(tree.dev / "sdb")]


def test_missing_cow_file_is_asked_for(tree: Tree, tmp_path: Path) -> None:
    cow = replace(FILE, path=tmp_path / "cow")
    with pytest.raises(Refused, match=r"cow is not there; mount what it is on"):
        store_now(cow, tree.sysfs())
    cow.path.touch()
    assert store_now(cow, tree.sysfs()) == cow.path
