"""A wrap comes up whatever became of the job on it, and never before its snapshot.

tests/cuts/test_wrap.py does it with a real kernel, systemd and a power cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from dmcopy.core.table import Table
from dmcopy.errors import DmFailed, Refused
from dmcopy.jobs import stamps
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.jobs.state import State
from dmcopy.jobs.wrap_config import Wrap
from dmcopy.jobs.wrap_up import BroughtUp, bring_up
from dmcopy.kernel.command import Commander
from dmcopy.kernel.lasting import Lasting
from dmcopy.stack.reassemble import CheckStore
from dmcopy.units import Bytes
from tests.unit.fake_dm import FakeDm
from tests.unit.kernel.tree import Tree

SECTORS: Final = 2048
DATA: Final = Wrap(
    name="data", under=Lasting("serial", "disk-7"), size=Bytes(SECTORS << 9), device="/dev/vdx"
)
PLAIN: Final = f"0 {SECTORS} linear 253:0 0"
OURS: Final = ("dmcopy-cut-source", "dmcopy-cut-cow", "dmcopy-cut-snap")


class Machine:
    """Disks vda (under the wrap) and vdb (the COW device), and the record of a job."""

    def __init__(self, folder: Path) -> None:
        self.tree = Tree(folder / "host")
        for name, devno in (("vda", "253:0"), ("vdb", "253:16")):
            self.tree.disk(name, devno, size=SECTORS)
            self.written(devno, 0)
        self.tree.write("253:0", "serial", "disk-7")
        boot_id = self.tree.proc / "sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text("today\n")
        self.dm = FakeDm()
        self.host = Host(
            dm=self.dm,
            sysfs=self.tree.sysfs(),
            run=Commander(),
            places=Places(folder / "state", folder / "run", folder / "etc", folder / "rules"),
        )
        self.shown: list[str] = []  # what the journal had when the wrap was shown

    def written(self, devno: str, writes: int) -> None:
        self.tree.write(devno, "stat", f"9 0 9 9 {writes} 0 9 9 0 0 0 0 0 0 0 0 0")

    def job(self, name: str, **more: Any) -> None:  # Any: JSON
        """Have a job that was copying when the machine went down."""
        cow = str(self.tree.dev / "vdb")
        device = {"path": cow, "devno": "8:16", "length_sectors": SECTORS}
        facts = {
            "boot_id": "yesterday",
            "provider": "splice",
            "source": {
                "path": "/dev/mapper/data",
                "devno": "254:9",
                "dm_name": "data",
                "length_sectors": SECTORS,
                "logical_block_bytes": 512,
                "table": f"0 {SECTORS} linear 8:0 0",
                "identity": {"dm_uuid": "DMCOPYWRAP-data", "devno": "254:9"},
                "below": {"8:0": {"devno": "8:0"}},
            },
            "cow": {"kind": "devices", "devices": [device]},
            **more,
        }
        spec = CopySpec(name=name, source="/dev/mapper/data", destination="image:/x")
        with Journal(self.host.places.journal) as journal:
            journal.define(name, spec.as_json())
            journal.set_facts(name, facts)
            journal.note(name, "begun", {"event": "begun"})
            journal.move(name, State.BEGUN)
            journal.move(name, State.COPYING)

    def lost(self, name: str) -> str | None:
        with Journal(self.host.places.journal) as journal:
            record = journal.record(name)
        assert record is not None
        return record.lost

    def facts(self, name: str) -> Any:  # Any: JSON
        with Journal(self.host.places.journal) as journal:
            record = journal.record(name)
        assert record is not None
        return record.facts

    def up(self) -> BroughtUp:
        return bring_up(DATA, self.host, patience=0.0)

    @property
    def table(self) -> str:
        return str(self.dm.table("data"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(CheckStore, "do", lambda self: None)  # no store is there
    monkeypatch.setattr(stamps, "refuse_stranger", lambda *words: None)
    return Machine(tmp_path)


def test_wrap_without_a_job_is_plain_and_brought_up_once(machine: Machine) -> None:
    assert "is up, over /dev/vda" in machine.up().said[0]
    assert machine.table == PLAIN
    before = list(machine.dm.calls)
    machine.up()
    assert machine.dm.calls == before


def test_wrap_with_a_job_is_shown_last_and_by_way_of_its_snapshot(machine: Machine) -> None:
    machine.job("cut")
    assert machine.up().lost is None
    assert machine.dm.calls == [
        "create data", *(f"create {name}" for name in OURS), "load data", "resume data"
    ]  # fmt: skip
    source = machine.dm.all["dmcopy-cut-source"]
    assert str(source.live) == PLAIN
    assert machine.table == f"0 {SECTORS} snapshot-origin {source.devno}"
    facts = machine.facts("cut")
    assert facts["boot_id"] == "today"
    assert facts["source"]["table"] == PLAIN
    assert facts["source"]["devno"] == machine.dm.all["data"].devno
    assert facts["cow"]["devices"][0]["devno"] == "253:16"


def test_journal_has_the_numbers_of_this_boot_before_the_wrap_is_shown(machine: Machine) -> None:
    machine.job("cut")
    load = machine.dm.load

    def look(name: str, table: Table, *, read_only: bool = False) -> None:
        assert machine.facts("cut")["boot_id"] == "today"
        machine.shown.append(name)
        load(name, table, read_only=read_only)

    machine.dm.load = look  # type: ignore[method-assign] # to look at that moment
    machine.up()
    assert machine.shown == ["data"]


def test_device_that_was_written_in_this_boot_has_lost_the_point_in_time(machine: Machine) -> None:
    machine.job("cut")
    machine.written("253:0", 7)
    done = machine.up()
    assert "/dev/vda was written after the machine was started (7 writes)" in str(done.lost)
    assert "dmcopy cancel cut" in str(done.lost)
    assert "7 writes" in str(machine.lost("cut"))
    assert machine.table == PLAIN, "the machine boots all the same"
    assert sorted(machine.dm.all) == ["data"]


def test_without_the_cow_device_the_wrap_comes_up_and_the_job_is_not_given_up(
    machine: Machine,
) -> None:
    machine.job("cut", cow={"kind": "devices", "devices": [
        {"path": "/nowhere/vdc", "devno": "8:32", "length_sectors": SECTORS}
    ]})  # fmt: skip
    done = machine.up()
    assert done.lost is None
    assert "job cut cannot be gone on with now: COW device /nowhere/vdc" in done.said[0]
    assert "lost with the first write to data" in done.said[0]
    assert machine.lost("cut") is None
    assert machine.table == PLAIN


@pytest.mark.parametrize("call", [f"create {name}" for name in OURS] + ["resume data"])
def test_whatever_fails_the_wrap_comes_up_and_nothing_is_left(machine: Machine, call: str) -> None:
    machine.job("cut")
    verb, _, name = call.partition(" ")
    machine.dm.fail[call] = DmFailed(verb, name, "no memory")
    done = machine.up()
    assert "no memory" in done.said[0]
    assert machine.table == PLAIN
    assert sorted(machine.dm.all) == ["data"]


def test_journal_that_cannot_be_read_keeps_nobody_from_booting(machine: Machine) -> None:
    machine.host.places.journal.parent.mkdir()
    machine.host.places.journal.write_bytes(b"no database" * 1000)
    done = machine.up()
    assert "is damaged" in done.said[0]
    assert machine.table == PLAIN


def test_what_a_killed_one_had_made_is_made_again(machine: Machine) -> None:
    machine.job("cut")
    machine.up()
    del machine.dm.all["data"]
    half = machine.dm.add("data", "", uuid="DMCOPYWRAP-data")
    assert machine.up().lost is None
    assert machine.dm.all["data"] is not half
    assert "snapshot-origin" in machine.table


def test_of_two_jobs_only_the_later_can_stand(machine: Machine) -> None:
    machine.job("first")
    machine.job("cut")
    done = machine.up()
    assert "job first is lost: job cut began later" in str(done.lost)
    assert machine.lost("cut") is None
    assert "snapshot-origin" in machine.table


def test_wrap_of_another_size_has_lost_the_point_in_time(machine: Machine) -> None:
    source = {"table": "0 1024 linear 8:0 0", "length_sectors": 1024}
    machine.job("cut")
    known = machine.facts("cut")
    with Journal(machine.host.places.journal) as journal:
        journal.set_facts("cut", {**known, "source": {**known["source"], **source}})
    assert "had 1024 sectors" in str(machine.up().lost)
    assert machine.table == PLAIN


def test_device_that_is_smaller_or_mounted_is_left_alone_and_its_job_is_lost(
    machine: Machine,
) -> None:
    machine.job("cut")
    machine.tree.mount("253:0", "/data", "ext4", "/dev/vda")
    with pytest.raises(Refused, match=r"in use \(mounted on /data\), past the wrap"):
        machine.up()
    assert "past its wrap" in str(machine.lost("cut"))
    assert machine.dm.all == {}
    machine.tree.write("253:0", "size", "8")
    with pytest.raises(Refused, match="is smaller than it was"):
        machine.up()


def test_two_devices_of_that_name_are_refused(machine: Machine) -> None:
    machine.tree.write("253:16", "serial", "disk-7")
    with pytest.raises(Refused, match="/dev/vda and /dev/vdb are both serial disk-7"):
        machine.up()


def test_dm_device_of_that_name_that_is_no_wrap_is_not_touched(machine: Machine) -> None:
    machine.dm.add("data", PLAIN, uuid="LVM-x")
    with pytest.raises(Refused, match="that is no wrap"):
        machine.up()
    assert machine.dm.calls == []
