"""What would be done about a device, and why not; on a tree of sysfs of the test's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.agent import triggers
from dmcopy.agent.places import Present, names_of
from dmcopy.agent.policy import Place, read
from dmcopy.agent.triggers import Action, Appearances, Verdict
from dmcopy.cli.common import Context
from dmcopy.cli.main import main
from dmcopy.errors import Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.overview import view_of
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander
from dmcopy.kernel.shelter import Shelter
from tests.unit.kernel.tree import Tree

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "host")
    for number, name in enumerate(("sda", "sdb")):
        devno = made.disk(name, f"8:{16 * number}")
        made.write(devno, "size", str(8 * MIB >> 9))
        made.write(devno, "device/wwid", f"naa.5000c500a1b2c3d{number}")
        made.write(devno, "diskseq", str(11 + number))
    made.partition("8:16", 1, "8:17")
    made.write("8:17", "size", str(4 * MIB >> 9))
    return made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Give what udev's database says, by devno."""
    database: dict[str, dict[str, str]] = {
        "8:17": {"ID_PART_ENTRY_SCHEME": "gpt", "ID_PART_ENTRY_UUID": "0AB1",
                 "ID_PART_ENTRY_NAME": "dmcopy-set", "ID_FS_UUID": "the-source's"},
        "8:0": {"ID_SERIAL_SHORT": "SER1", "ID_WWN": "0x5000c500", "ID_FS_UUID": "the-source's"},
    }  # fmt: skip

    def properties(devno: str) -> Mapping[str, str]:
        return database.get(devno, {})

    monkeypatch.setattr(udev, "is_running", lambda: True)
    monkeypatch.setattr(udev, "properties", properties)
    return database


@pytest.fixture
def host(tree: Tree, told: object, run: Commander, tmp_path: Path) -> Host:
    places = Places(tmp_path / "state", tmp_path / "run", tmp_path / "etc")
    places.policies.mkdir(parents=True)
    return Host(dm=None, sysfs=tree.sysfs(), run=run, places=places)


def write(host: Host, name: str, destination: str, more: str = "") -> None:
    (host.places.policies / f"{name}.toml").write_text(
        f'source = "/dev/mapper/{name}"\ndestination = {{ {destination} }}\n'
        f'{more or """when = { on = ["plug"] }"""}\n'
    )


def verdicts(host: Host, devno: str) -> dict[str, Verdict]:
    policies = read(host.places).policies
    return {one.policy: one for one in triggers.on_plug(policies, devno, host)}


def define(host: Host, job: str, *, to: State = State.DEFINED, disk: str = "8:0") -> None:
    with Journal(host.places.journal) as journal:
        identity = {"path": "/dev/x", **host.sysfs.identity(disk)}
        spec = {"source": "/dev/mapper/a", "destination": "block:/dev/x", "identity": identity}
        journal.define(job, spec)
        if to is not State.DEFINED:
            journal.move(job, to)


def test_only_the_policy_of_this_disk_acts_whatever_is_on_it(host: Host) -> None:
    write(host, "a", 'wwn = "0x5000C500A1B2C3D0"')
    write(host, "b", 'wwn = "naa.5000c500a1b2c3d1"')
    write(host, "c", 'image = "/b/{job}"', 'when = { calendar = "daily" }')
    found = verdicts(host, "8:0")
    assert {name: one.action for name, one in found.items()} == {
        "a": Action.BEGIN, "b": Action.NOTHING, "c": Action.NOTHING,
    }  # fmt: skip
    assert found["a"].words[:2] == ("copy", "--name")
    assert found["a"].words[-2:] == ("/dev/mapper/a", f"block:{host.sysfs.node('8:0')}")
    assert "is not its disk (wwn 5000c500a1b2c3d1)" in found["b"].why
    assert "does not run on plug" in found["c"].why


def test_disk_with_the_file_system_of_the_source_is_a_stranger(host: Host) -> None:
    names = [names_of(devno, host.sysfs, host.run) for devno in ("8:0", "8:17")]
    assert all("the-source's" not in values for one in names for values in one.values())
    assert names[0]["wwn"] == {"5000c500a1b2c3d0", "5000c500"}
    assert names[1] == {"partuuid": {"0ab1"}, "partlabel": {"dmcopy-set"}}


def test_lun_is_not_known_by_the_name_of_its_array(
    host: Host, told: dict[str, dict[str, str]]
) -> None:
    told["8:0"]["ID_WWN_WITH_EXTENSION"] = "0x5000c500a1b2c3d0"
    assert names_of("8:0", host.sysfs, host.run)["wwn"] == {"5000c500a1b2c3d0"}


def test_partition_of_an_mbr_has_no_name_for_ever(
    host: Host, told: dict[str, dict[str, str]]
) -> None:
    told["8:17"]["ID_PART_ENTRY_SCHEME"] = "dos"
    assert names_of("8:17", host.sysfs, host.run) == {}


def test_partition_that_udev_was_kept_from_is_asked_itself(
    host: Host, told: dict[str, dict[str, str]], fp: FakeProcess
) -> None:
    told["8:17"].clear()
    said = "PART_ENTRY_SCHEME=gpt\nPART_ENTRY_UUID=0ab1\nPART_ENTRY_NAME=x\n"
    fp.register(["blkid", fp.any()], stdout=said)
    found = names_of("8:17", host.sysfs, host.run)
    assert found == {"partuuid": {"0ab1"}, "partlabel": {"x"}}


def test_device_of_our_own_has_no_name(host: Host, tree: Tree) -> None:
    tree.disk("dm-0", "253:0")
    tree.write("253:0", "dm/uuid", "DMCOPY-x-snap")
    assert names_of("253:0", host.sysfs, host.run) == {}


def test_two_devices_with_one_name_are_refused(
    host: Host, told: dict[str, dict[str, str]], tree: Tree
) -> None:
    write(host, "a", 'wwn = "5000c500a1b2c3d0"')
    tree.write("8:16", "device/wwid", "naa.5000c500a1b2c3d0")
    found = verdicts(host, "8:0")["a"]
    assert found.action is Action.REFUSED
    assert "both have wwn 5000c500a1b2c3d0" in found.why


def test_group_waits_for_all_its_disks(host: Host) -> None:
    pair = '[[pair]]\nsource = "/dev/vg/{0}"\ndestination = {{ {1} }}\n'
    text = 'when = { on = ["plug"] }\n' + pair.format("x", 'serial = "SER1"')
    path = host.places.policies / "a.toml"
    path.write_text(text + pair.format("y", 'wwn = "none-yet"'))
    found = verdicts(host, "8:0")["a"]
    assert (found.action, "waits for wwn none-yet" in found.why) == (Action.NOTHING, True)
    path.write_text(text + pair.format("y", 'partlabel = "dmcopy-set"'))
    for devno in ("8:0", "8:17"):
        found = verdicts(host, devno)["a"]
        assert found.action is Action.BEGIN
        assert found.words.count("--pair") == 2


def test_appearance_is_served_once_and_the_next_one_again(host: Host, tree: Tree) -> None:
    write(host, "a", 'serial = "SER1"')
    seen = Appearances(host.places, host.sysfs)
    seen.serve("a", seen.of("8:0"))
    assert verdicts(host, "8:0")["a"].action is Action.NOTHING
    assert "plug it in again" in verdicts(host, "8:0")["a"].why
    tree.write("8:0", "diskseq", "17")
    assert verdicts(host, "8:0")["a"].action is Action.BEGIN
    assert seen.of("8:16") != seen.of("8:17"), "a partition is not its disk"


def write_group(host: Host) -> None:
    pair = '[[pair]]\nsource = "/dev/vg/{0}"\ndestination = {{ {1} }}\n'
    text = 'when = { on = ["plug"] }\n' + pair.format("x", 'serial = "SER1"')
    path = host.places.policies / "a.toml"
    path.write_text(text + pair.format("y", 'partlabel = "dmcopy-set"'))


def test_group_has_run_for_all_of_its_disks_that_are_there(host: Host, tree: Tree) -> None:
    write_group(host)
    (policy,) = read(host.places).policies
    for _ in range(2):
        triggers.serve(policy, host)
    for devno in ("8:0", "8:17"):
        assert "it has run since this disk was plugged in" in verdicts(host, devno)["a"].why
    assert len((host.places.runtime / "plugged/a").read_text().splitlines()) == 2
    tree.write("8:16", "diskseq", "17")
    assert verdicts(host, "8:17")["a"].acts, "one of them was plugged in again"


def test_whoever_goes_on_with_a_job_does_so_for_its_policy(host: Host) -> None:
    write_group(host)
    with triggers.on_behalf("a-20260101-000000", host):
        for devno in ("8:0", "8:17"):
            assert verdicts(host, devno)["a"].action is Action.NOTHING
        with (
            pytest.raises(Refused, match="is being worked on for its policy a"),
            triggers.on_behalf("a-20260101-000000", host, patience=0),
        ):
            pass
        assert triggers.is_at_work("a-20260101-000000", host)
    assert not triggers.is_at_work("a-20260101-000000", host)
    assert "it has run since" in verdicts(host, "8:0")["a"].why, "and nothing is begun after it"


def test_job_that_another_works_on_is_not_waited_for(host: Host) -> None:
    write(host, "a", 'serial = "SER1"')
    with (
        JobLock(triggers.locks(host.places), "a"),
        JobLock(host.places.locks, "a-20260101-000000"),
        pytest.raises(Refused, match="is being worked on"),
        triggers.on_behalf("a-20260101-000000", host, patience=3600),
    ):
        pass
    assert verdicts(host, "8:0")["a"].acts, "nothing was done, and nothing is on record"


def test_job_of_no_policy_is_nobodys(host: Host) -> None:
    write(host, "a", 'serial = "SER1"')
    with JobLock(triggers.locks(host.places), "a"), triggers.on_behalf("a", host):
        assert not triggers.is_at_work("a", host)
    write(host, "b", 'image = "/b/{job}"', 'when = { calendar = "daily" }')
    with triggers.on_behalf("b-20260101-000000", host):
        assert triggers.is_at_work("b-20260101-000000", host)


def test_disk_of_two_policies_is_refused_for_both(host: Host) -> None:
    write(host, "a", 'serial = "SER1"')
    write(host, "b", 'wwn = "5000c500a1b2c3d0"')
    found = verdicts(host, "8:0")
    assert [found[name].action for name in "ab"] == [Action.REFUSED] * 2
    assert "is the disk of b as well" in found["a"].why


def test_policy_that_is_at_work_begins_nothing(host: Host) -> None:
    write(host, "a", 'serial = "SER1"')
    with JobLock(triggers.locks(host.places), "a"):
        found = verdicts(host, "8:0")["a"]
        assert (found.action, "it is at work" in found.why) == (Action.NOTHING, True)
        (policy,) = read(host.places).policies
        assert triggers.decide(policy, host, is_locked=True).acts
    define(host, "a-20260101-000000")
    with JobLock(host.places.locks, "a-20260101-000000"):
        assert "its job a-20260101-000000 is at work" in verdicts(host, "8:0")["a"].why
        Shelter(host.places.runtime).hide("8:0", "a-20260101-000000")
        assert "writes it now" in verdicts(host, "8:0")["a"].why


def test_job_that_can_never_go_on_makes_way_for_a_new_one(host: Host) -> None:
    write(host, "a", 'serial = "SER1"')
    define(host, "a-20260101-000000")  # killed before its begin time
    found = verdicts(host, "8:0")["a"]
    assert (found.action, found.gives_up) == (Action.BEGIN, "a-20260101-000000")
    assert "is cleared away" in found.why


def test_unfinished_job_goes_on_and_on_its_own_disk_only(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(host, "a", 'serial = "SER1"')
    define(host, "a-20260101-000000", disk="8:0")
    view = view_of("a-20260101-000000", host)
    monkeypatch.setattr(
        triggers, "view_of", lambda *_: type(view)(**{**vars(view), "no_way_on": None})
    )
    found = verdicts(host, "8:0")["a"]
    assert (found.action, found.words) == (Action.RESUME, ("resume", "a-20260101-000000"))
    define(host, "a-20260101-000001", disk="8:16")
    found = verdicts(host, "8:0")["a"]
    assert found.action is Action.REFUSED
    assert "is for another disk (wwn naa.5000c500a1b2c3d1)" in found.why
    monkeypatch.setattr(
        triggers, "view_of",
        lambda *_: type(view)(**{**vars(view), "no_way_on": None, "not_now": "no snapshot"}),
    )  # fmt: skip
    (policy,) = read(host.places).policies
    assert "cannot go on now: no snapshot" in triggers.decide(policy, host).why


def test_plug_does_not_go_on_with_what_somebody_paused(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(host, "a", 'serial = "SER1"')
    define(host, "a-20260101-000000")
    view = replace(view_of("a-20260101-000000", host), no_way_on=None)
    for happened, action in (
        (("begun", "paused"), Action.NOTHING),
        (("paused", "resumed", "ended"), Action.RESUME),
    ):
        log = tuple((0.0, {"event": name}) for name in happened)
        monkeypatch.setattr(triggers, "view_of", lambda *_, log=log: replace(view, log=log))
        assert verdicts(host, "8:0")["a"].action is action
        (policy,) = read(host.places).policies
        assert triggers.decide(policy, host).action is Action.RESUME, "somebody says so"


def test_device_that_is_not_there_is_refused(host: Host) -> None:
    with pytest.raises(Refused, match="no device with serial none is there; attach it"):
        Present(host.sysfs, host.run, host.places.runtime).path_of(Place("serial", "none"))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "etc/policies.d").mkdir(parents=True)
    return Context(places=Places(tmp_path / "state", tmp_path / "run", tmp_path / "etc"))


@pytest.mark.forks  # opening the host may load dm-mod
def test_check_names_what_the_command_line_says_against_a_policy(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert context.places is not None
    path = context.places.policies / "a.toml"
    text = 'source = "/dev/vg/x"\ndestination = { image = "/b/{job}" }\n'
    path.write_text(text + 'when = { calendar = "daily" }\nrate = "fast"\n')
    assert main(["policy", "check"], context) == 2
    out, err = capsys.readouterr()
    assert "'fast' is not a rate" in err
    assert out.startswith("0 policies are right, 1 faults")
    path.write_text(text + 'when = { calendar = "daily" }\nrate = "5m"\n')
    assert main(["policy", "check"], context) == 0
    path.write_text(text + 'when = { calendar = "dailyx" }\n')
    is_there = Commander().find("systemd-analyze") is not None
    assert main(["policy", "check"], context) == (2 if is_there else 0)
    assert main(["policy", "list", "--json"], context) == 0
    assert main(["policy", "run", "nobody"], context) == 2
    assert "there is no policy nobody (there are: a)" in capsys.readouterr().err
    assert main(["policy", "simulate", "/sys/block/none"], context) == 2
    assert main(["policy", "plug", "/sys/block/none"], context) == 0
    assert "nothing is done" in capsys.readouterr().out
