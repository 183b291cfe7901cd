"""The same name is the same copy only with the same devices and the same result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dmcopy.cli.common import Context
from dmcopy.cli.main import main
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.overview import view_of
from dmcopy.jobs.sameness import differences
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Commander
from dmcopy.units import Bytes
from tests.unit.fake_dm import FakeDm
from tests.unit.kernel.tree import Tree

ENDED = (State.BEGUN, State.COPYING, State.COPIED, State.ENDED)


class Machine:
    """Disks vda, vdb and vdc, by their serials; the journal has a job that copied vda to vdb."""

    def __init__(self, folder: Path) -> None:
        self.tree = Tree(folder / "host")
        for number, name in enumerate(("vda", "vdb", "vdc")):
            self.tree.disk(name, f"253:{number}")
            self.tree.write(f"253:{number}", "serial", f"disk-{name}")
        self.dev = str(self.tree.dev)
        self.host = Host(
            dm=None,
            sysfs=self.tree.sysfs(),
            run=Commander(),
            places=Places(folder / "state", folder / "run"),
        )
        self.spec = CopySpec(
            name="a", source=f"{self.dev}/vda", destination=f"block:{self.dev}/vdb"
        )
        self.record(self.spec)

    def record(self, spec: CopySpec, states: tuple[State, ...] = ENDED) -> None:
        sysfs = self.host.sysfs
        destination = sysfs.identity(sysfs.devno_of(spec.destination.removeprefix("block:")))
        with Journal(self.host.places.journal) as journal:
            journal.define(spec.name, spec.as_json() | {"identity": destination})
            facts = {"source": {"identity": sysfs.identity(sysfs.devno_of(spec.source))}}
            journal.set_facts(spec.name, facts)
            for state in states:
                journal.move(spec.name, state)

    def differs(self, *asked: CopySpec, job: str = "a") -> list[str]:
        found = differences(view_of(job, self.host), asked, self.host)
        return [one.word for one in found]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_how_a_copy_comes_about_makes_no_difference(machine: Machine) -> None:
    assert machine.differs(machine.spec) == []
    other = replace(machine.spec, chunk=Bytes(4096), on_full="hold", overwrite_signature=True)
    assert machine.differs(other) == []


def test_another_result_is_another_copy(machine: Machine) -> None:
    asked = replace(machine.spec, keep=True, hooks=("x",), freeze="none", verify=True)
    assert machine.differs(asked) == ["keep", "freeze", "hooks", "verify"]


def test_verified_copy_serves_who_does_not_ask_for_it(machine: Machine) -> None:
    machine.record(replace(machine.spec, name="v", verify=True))
    assert machine.differs(replace(machine.spec, name="v"), job="v") == []


def test_verification_can_still_be_asked_of_an_interrupted_copy_alone(machine: Machine) -> None:
    asked = replace(machine.spec, name="u", verify=True)
    machine.record(replace(asked, verify=False), (State.BEGUN, State.COPYING, State.PAUSED))
    view = view_of("u", machine.host)
    assert differences(view, [asked], machine.host) != [], "one at work is not told"
    interrupted = replace(view, no_way_on=None)
    assert interrupted.can_resume
    assert differences(interrupted, [asked], machine.host) == []


def test_other_path_to_the_same_disk_is_the_same_copy(machine: Machine) -> None:
    machine.tree.node("/dev/by-id/a", "253:0")
    assert machine.differs(replace(machine.spec, source="/dev/by-id/a")) == []


def test_other_disk_at_the_same_path_is_another_copy(machine: Machine) -> None:
    machine.tree.write("253:0", "serial", "somebody's")
    machine.tree.write("253:1", "serial", "else's")
    assert machine.differs(machine.spec) == ["source", "destination"]


def test_device_that_is_gone_is_judged_by_its_path(machine: Machine) -> None:
    gone = replace(machine.spec, source="/dev/gone", destination="block:/dev/gone-too")
    assert machine.differs(gone) == ["source", "destination"]
    machine.tree.node(machine.spec.source, "253:9")  # a number that leads nowhere
    assert machine.differs(machine.spec) == []


def test_disk_that_grew_is_the_same(machine: Machine) -> None:
    machine.tree.write("253:0", "size", "4096")
    assert machine.differs(machine.spec) == []


def test_group_is_compared_volume_by_volume(machine: Machine) -> None:
    members = [
        replace(machine.spec, name=f"g.{number}", group="g", source=f"{machine.dev}/{disk}")
        for number, disk in ((1, "vda"), (2, "vdc"))
    ]
    with Journal(machine.host.places.journal) as journal:
        journal.define("g", {"source": "", "destination": "", "members": ["g.1", "g.2"]})
    for member in members:
        machine.record(member)
    assert machine.differs(*members, job="g") == []
    assert machine.differs(*reversed(members), job="g") == ["source", "source"]
    assert machine.differs(members[0], job="g") == ["volumes"]
    assert machine.differs(machine.spec, job="g") == ["volumes"]
    assert machine.differs(machine.spec, job="g.1") == ["group"]


def test_plan_on_record_tells_it_in_json(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    context = Context(dm=FakeDm(), places=machine.host.places)
    words = ["plan", "--on-record", "--json", "--name"]
    assert main([*words, "b", "/dev/x", "image:/y"], context) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["event"], said["status"], said["same"]) == ("on_record", None, None)
    assert main([*words, "a"], context) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["same"], said["status"]["state"]) == (None, "ended")
    assert said["status"]["source_identity"]["serial"] == "disk-vda"
    assert main([*words, "a", "/dev/gone", machine.spec.destination], context) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["same"] is False
    assert said["differs"][0] == {
        "word": "source", "recorded": machine.spec.source, "asked": "/dev/gone",
    }  # fmt: skip
    assert main(["plan", "--on-record"], context) == 2
