"""Which partitions label files name: the disk's own, no others; and what a file's faults are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dmcopy.agent import triggers
from dmcopy.agent.label import Labels, Named, parse
from dmcopy.agent.places import Present
from dmcopy.agent.policy import Place, read
from dmcopy.agent.triggers import Action, Verdict
from dmcopy.cli import policy as cli
from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.overview import view_of
from dmcopy.jobs.spec import Places
from dmcopy.kernel import rootfile, udev
from dmcopy.kernel.command import Commander
from tests.unit.kernel.tree import Tree

MIB = 1 << 20
ONE = "11111111-aaaa-4aaa-8aaa-0000000000{:02x}"  # partition by its minor


def entry(minor: int, kind: str = "", label: str = "") -> dict[str, str]:
    uuid = ONE.format(minor)
    found = {"ID_PART_ENTRY_SCHEME": "gpt", "ID_PART_ENTRY_UUID": uuid, "ID_PART_ENTRY_NAME": "x"}
    return found | ({"ID_FS_TYPE": kind, "ID_FS_LABEL": label} if kind else {})


def file(minor: int, label: str = "offsite-set") -> str:
    return f'label = "{label}"\npartuuid = "{ONE.format(minor).upper()}"\n'


class Host2:
    """Two disks of three partitions each; the first of each has the label file."""

    def __init__(self, tree: Tree, host: Host) -> None:
        self.tree = tree
        self.host = host
        self.told: dict[str, dict[str, str]] = {}
        self.files: dict[str, str | DmcopyError] = {}
        self.looked: list[str] = []
        for disk, name in ((0, "sda"), (16, "sdb")):
            tree.disk(name, f"8:{disk}")
            tree.write(f"8:{disk}", "size", str(8 * MIB >> 9))
            tree.write(f"8:{disk}", "diskseq", str(disk + 5))
            tree.write(f"8:{disk}", "device/wwid", f"naa.5000c500a1b2c3{disk:02x}")
            for number in (1, 2, 3):
                devno = tree.partition(f"8:{disk}", number, f"8:{disk + number}")
                tree.write(devno, "size", str(2 * MIB >> 9))
                tree.write(devno, "uevent", f"PARTUUID={ONE.format(disk + number)}")
                self.told[devno] = entry(disk + number)
        self.told["8:1"] = entry(1, "vfat", "DMCOPY")
        self.files["/dev/sda1"] = file(2)

    def read(self, _run: object, node: str, kind: str, name: str, **_: object) -> str:
        assert (kind in rootfile.KINDS, name) == (True, "dmcopy.toml")
        node = "/dev/" + Path(node).name
        self.looked.append(node)
        found = self.files[node]
        if isinstance(found, DmcopyError):
            raise found
        return found

    @property
    def labels(self) -> Labels:
        return Labels(self.host.sysfs, self.host.run, self.host.places.runtime)

    def verdict(self, devno: str, policy: str = "a") -> Verdict:
        found = triggers.on_plug(read(self.host.places).policies, devno, self.host)
        return {one.policy: one for one in found}[policy]


@pytest.fixture
def at(tmp_path: Path, run: Commander, monkeypatch: pytest.MonkeyPatch) -> Host2:
    tree = Tree(tmp_path / "host")
    places = Places(tmp_path / "state", tmp_path / "run", tmp_path / "etc")
    places.policies.mkdir(parents=True)
    (places.policies / "a.toml").write_text(
        'source = "/dev/mapper/a"\ndestination = { label = "offsite-set" }\n'
        'when = { on = ["plug"] }\n'
    )
    made = Host2(tree, Host(dm=None, sysfs=tree.sysfs(), run=run, places=places))

    def properties(devno: str) -> Mapping[str, str]:
        return made.told.get(devno, {})

    monkeypatch.setattr(udev, "is_running", lambda: True)
    monkeypatch.setattr(udev, "properties", properties)
    monkeypatch.setattr(rootfile, "read", made.read)
    return made


def test_file_names_one_partition_or_several() -> None:
    assert parse(file(2)) == (Named("offsite-set", ONE.format(2)),)
    both = "".join(f"[[destination]]\n{file(number, f'set-{number}')}" for number in (2, 3))
    assert [one.label for one in parse(both)] == ["set-2", "set-3"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("label", "Expected '='"),
        ("[" * 4000, "recursion|Expected|Invalid"),
        ("", "must say label and partuuid"),
        (file(2) + "x = 1", "and nothing else"),
        (file(2) + "[[destination]]\n" + file(3), "and nothing else"),
        ('label = "x y"\npartuuid = "1"', "'x y' cannot be a label"),
        ('label = ["offsite-set"]\npartuuid = "1"', "cannot be a label"),
        ('label = "offsite-set"\npartuuid = "0ab1-01"', "'0ab1-01' cannot be a partuuid"),
        ('label = "offsite-set"\npartuuid = 5', "cannot be a partuuid"),
        ("destination = 5", "write \\[\\[destination"),
        ("destination = []", "write \\[\\[destination"),
        ("destination = [5]", "must say label"),
        (f"[[destination]]\n{file(2)}[[destination]]\n{file(3)}", "a label is there twice"),
        (f"[[destination]]\n{file(2)}[[destination]]\n{file(2, 'set')}", "a partuuid is there twi"),
    ],
)
def test_file_with_a_fault_says_nothing(text: str, wrong: str) -> None:
    with pytest.raises(DmcopyError, match=wrong) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_label_belongs_to_the_partition_that_is_named_and_to_no_other(at: Host2) -> None:
    found = {devno: at.labels.of(devno) for devno in at.told}
    assert found == {devno: {"offsite-set"} if devno == "8:2" else frozenset() for devno in at.told}
    assert at.labels.find("offsite-set") == ["8:2"]
    assert at.labels.find("offsite") == []
    assert (at.labels.named_by("8:1"), at.labels.named_by("8:2")) == (["8:2"], [])
    assert {*at.looked} == {"/dev/sda1"}, "no other file system is looked into"


@pytest.mark.parametrize(
    ("named", "wrong"),
    [(1, "which is its own"), (18, "which is not on this disk"), (9, "which is not on this disk")],
)
def test_file_may_name_a_partition_beside_it_only(at: Host2, named: int, wrong: str) -> None:
    at.files["/dev/sda1"] = file(named)
    assert at.labels.find("offsite-set") == []
    for devno in ("8:0", "8:1", "8:2"):
        found = at.verdict(devno)
        assert found.action is Action.NOTHING
        assert "is not its disk (label offsite-set); dmcopy.toml on " in found.why
        assert found.why.endswith(wrong)


def test_partition_of_an_mbr_and_one_of_two_is_not_named(at: Host2) -> None:
    at.told["8:2"]["ID_PART_ENTRY_SCHEME"] = "dos"
    assert "not on this disk" in at.labels.faults("8:2")[0]
    at.told["8:2"] = at.told["8:3"] = entry(2)
    assert at.labels.faults("8:2")[0].endswith("which is there twice")
    assert at.labels.find("offsite-set") == []


def test_disk_with_two_such_file_systems_is_not_looked_into(at: Host2) -> None:
    at.told["8:3"] = entry(3, "ext4", "DMCOPY")  # such as the copy of one
    assert "sda1 and " in at.labels.faults("8:0")[0]
    assert "neither is looked into" in at.labels.faults("8:0")[0]
    assert at.labels.find("offsite-set") == []
    assert at.looked == []


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "iso9660", "DM_snapshot_cow"])
def test_other_file_systems_are_not_looked_into(at: Host2, kind: str) -> None:
    at.told["8:1"]["ID_FS_TYPE"] = kind
    assert f"has a file system {kind}, and is not looked into" in at.labels.faults("8:1")[0]
    assert at.looked == []


def test_nothing_is_looked_into_unless_a_policy_asks_for_a_label(at: Host2) -> None:
    (at.host.places.policies / "a.toml").write_text(
        'source = "/dev/mapper/a"\ndestination = { partlabel = "none" }\nwhen = { on = ["plug"] }\n'
    )
    assert at.verdict("8:1").action is Action.NOTHING
    assert at.looked == []


def test_fault_of_reading_is_told(at: Host2) -> None:
    at.files["/dev/sda1"] = DmcopyError("cannot mount /dev/sda1: it is busy")
    assert at.verdict("8:2").why.endswith("; cannot mount /dev/sda1: it is busy")


def test_event_of_the_label_partition_is_about_the_one_that_it_names(at: Host2) -> None:
    assert at.verdict("8:0").action is Action.NOTHING
    assert at.verdict("8:3").action is Action.NOTHING
    by_itself, by_label = at.verdict("8:2"), at.verdict("8:1")
    assert (by_itself.action, by_itself.at) == (Action.BEGIN, None)
    assert (by_label.action, by_label.at) == (Action.BEGIN, "8:2")
    assert by_itself.words[-1].endswith("/dev/sda2")
    assert by_label.words[-1] == by_itself.words[-1]
    seen = triggers.Appearances(at.host.places, at.host.sysfs)
    seen.serve("a", seen.of("8:2"))
    assert at.verdict("8:1").action is Action.NOTHING
    assert "plug it in again" in at.verdict("8:1").why


def hand_over(at: Host2, monkeypatch: pytest.MonkeyPatch, does: Callable[[int], None]) -> int:
    """Leave the event of the label partition to the other's unit; give how often that began."""
    started: list[str] = []

    def start(devno: str, _host: object) -> str:
        started.append(devno)
        does(len(started))
        return "is started"

    monkeypatch.setattr(cli, "start_unit", start)
    monkeypatch.setattr(cli, "_PAUSES", (0.0,) * 4)
    policies = read(at.host.places).policies
    verdicts = triggers.on_plug(policies, "8:1", at.host)
    assert cli._hand_over(policies, verdicts, "8:1", at.host)
    assert {*started} == {"8:2"}
    return len(started)


def test_unit_is_started_until_it_has_taken_the_work(
    at: Host2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is one that is about to end, having seen no label."""
    seen = triggers.Appearances(at.host.places, at.host.sysfs)

    def does(number: int) -> None:
        if number == 2:
            seen.serve("a", seen.of("8:2"))

    assert hand_over(at, monkeypatch, does) == 2
    policies = read(at.host.places).policies
    verdicts = triggers.on_plug(policies, "8:1", at.host)
    assert not cli._hand_over(policies, verdicts, "8:1", at.host), "it is done"
    verdicts = triggers.on_plug(policies, "8:2", at.host)
    assert not cli._hand_over(policies, verdicts, "8:2", at.host), "its own is its own"


def test_unit_that_never_takes_it_is_an_error(at: Host2, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DmcopyError, match="does nothing about it"):
        hand_over(at, monkeypatch, lambda _: None)


def test_refusal_is_told_by_the_other_unit_once(at: Host2, monkeypatch: pytest.MonkeyPatch) -> None:
    at.told["8:17"] = entry(17, "ext4", "DMCOPY")
    at.files["/dev/sdb1"] = file(18)
    seen = triggers.Appearances(at.host.places, at.host.sysfs)
    assert hand_over(at, monkeypatch, lambda _: seen.serve("a~refused", seen.of("8:2"))) == 1


def test_two_disks_with_one_label_are_refused(at: Host2) -> None:
    at.told["8:17"] = entry(17, "ext4", "DMCOPY")
    at.files["/dev/sdb1"] = file(18)
    found = at.verdict("8:2")
    assert found.action is Action.REFUSED
    assert "both have label offsite-set" in found.why
    assert at.verdict("8:17").at == "8:18"
    present = Present(at.host.sysfs, at.host.run, at.host.places.runtime)
    with pytest.raises(Refused, match="which one is meant cannot be told"):
        present.path_of(Place("label", "offsite-set"))


def test_agent_has_the_unit_look_into_it(at: Host2) -> None:
    policies = read(at.host.places).policies
    found = {devno: triggers.may_act(policies, devno, at.host) for devno in at.told}
    assert found == {devno: devno == "8:1" for devno in at.told}
    (at.host.places.policies / "b.toml").write_text(
        'source = "/dev/mapper/b"\ndestination = { wwn = "5000c500a1b2c310" }\n'
        'when = { on = ["plug"] }\n'
    )
    pair = '[[pair]]\nsource = "/dev/vg/{0}"\ndestination = {{ {1} }}\n'
    (at.host.places.policies / "c.toml").write_text(
        'when = { on = ["plug"] }\n'
        + pair.format("x", 'wwn = "5000c500a1b2c300"')
        + pair.format("y", 'label = "other"')
    )
    policies = read(at.host.places).policies
    for devno, may in (("8:0", True), ("8:16", True), ("8:2", False), ("8:17", False)):
        assert triggers.may_act(policies, devno, at.host) is may
    assert at.looked == [], "the agent may not mount"
    only = [one for one in policies if one.name == "b"]
    assert not triggers.may_act(only, "8:1", at.host)


def test_other_disk_of_the_label_is_refused_while_a_job_waits_for_its_own(
    at: Host2, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(at.host.places.journal) as journal:
        identity = {"path": "/dev/sda2", **at.host.sysfs.identity("8:2")}
        spec = {"source": "/dev/mapper/a", "destination": "block:/dev/sda2", "identity": identity}
        journal.define("a-20260101-000000", spec)
    view = view_of("a-20260101-000000", at.host)
    monkeypatch.setattr(
        triggers, "view_of", lambda *_: type(view)(**{**vars(view), "no_way_on": None})
    )
    assert at.verdict("8:1").words == ("resume", "a-20260101-000000")
    del at.told["8:1"]["ID_FS_LABEL"]
    at.told["8:17"] = entry(17, "vfat", "DMCOPY")
    at.files["/dev/sdb1"] = file(18)
    for devno in ("8:17", "8:18"):
        found = at.verdict(devno)
        assert found.action is Action.REFUSED
        assert "is for another disk (wwn naa.5000c500a1b2c300)" in found.why


def test_group_is_written_to_the_partitions_of_one_disk(at: Host2) -> None:
    pair = '[[pair]]\nsource = "/dev/vg/{0}"\ndestination = {{ label = "{0}" }}\n'
    path = at.host.places.policies / "a.toml"
    path.write_text('when = { on = ["plug"] }\n' + pair.format("data") + pair.format("wal"))
    at.files["/dev/sda1"] = f"[[destination]]\n{file(2, 'data')}"
    assert "waits for label wal as well" in at.verdict("8:2").why
    at.files["/dev/sda1"] = "".join(
        f"[[destination]]\n{file(number, name)}" for number, name in ((2, "data"), (3, "wal"))
    )
    for devno in ("8:1", "8:2", "8:3"):
        found = at.verdict(devno)
        assert (found.action, found.words.count("--pair")) == (Action.BEGIN, 2)
        assert [word for word in found.words if word.startswith("block:")] == [
            f"block:{at.host.sysfs.node(one)}" for one in ("8:2", "8:3")
        ]
    (policy,) = read(at.host.places).policies
    triggers.serve(policy, at.host)
    for devno in ("8:1", "8:2", "8:3"):
        assert "it has run since" in at.verdict(devno).why
