"""What `dmcopy setup` puts on a host, and takes away: on directories of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError, LeftBehind, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.installation import Shipped
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.setup import Setup, Site, carry_out
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Commander, Completed
from dmcopy.kernel.sysfs import Sysfs

ONE = "[Service]\nType=notify\nExecStart=dmcopy agent\n[Install]\nWantedBy=x\n"
TWO = "[Service]\nType=oneshot\nExecStart=dmcopy wrap --up %i\n"


class Machine:
    """A host under a directory; `ran` is what was run there, `fail` the command that fails."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        for name, text in {
            "rules/57-dmcopy.rules": "# rule\n",
            "units/dmcopy-agent.service": ONE,
            "units/dmcopy-wrap@.service": TWO,
            "tmpfiles/dmcopy.conf": "d /run/dmcopy\n",
        }.items():
            path = self.data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.etc = root / "etc"
        self.etc.mkdir()
        self.places = Places(
            root / "var/dmcopy", root / "run", self.etc / "dmcopy", self.etc / "udev"
        )
        self.ran: list[str] = []
        self.fail = ""
        self.enabled: set[str] = set()
        self.host = Host(dm=None, sysfs=Sysfs(), run=Commander(self._run), places=self.places)

    def _run(self, argv: object, _stdin: object, _timeout: float) -> Completed:
        assert isinstance(argv, tuple)
        line = " ".join(argv)
        if argv[1] == "is-enabled":
            return Completed(argv, 0, "enabled" if argv[2] in self.enabled else "disabled", "", 0.0)
        self.ran.append(line)
        if line == self.fail:
            return Completed(argv, 1, "", "no", 0.0)
        if argv[1] == "enable":
            self.enabled.add(argv[-1])
        if argv[1] == "disable":
            self.enabled.discard(argv[-1])
        return Completed(argv, 0, "", "", 0.0)

    def setup(self, *, systemd: bool = True) -> Setup:
        site = Site(
            units=self.etc / "systemd", tmpfiles=self.etc / "tmpfiles", has_systemd=systemd,
            has_udev=True,
        )  # fmt: skip
        shipped = Shipped(
            rules=self.data / "rules", units=self.data / "units", tmpfiles=self.data / "tmpfiles"
        )
        return Setup(self.host, shipped=shipped, program=Path("/opt/bin/dmcopy"), site=site)

    def put(self, *, systemd: bool = True, replace_changed: bool = False) -> list[str]:
        """Set up; give what was said."""
        said: list[str] = []
        steps = self.setup(systemd=systemd).plan_setup(replace_changed=replace_changed)
        carry_out(steps, self.host.run, lambda step: said.append(f"{step.action} {step.what}"))
        return said

    def undo(self) -> list[str]:
        said: list[str] = []
        steps = self.setup().plan_undo()
        carry_out(steps, self.host.run, lambda step: said.append(f"{step.action} {step.what}"))
        return said

    def files(self) -> Mapping[str, str]:
        """Give everything below etc and var: contents of files, modes of directories."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            if path.is_file()
            else oct(path.stat().st_mode & 0o777)
            for top in (self.etc, self.root / "var")
            for path in top.rglob("*")
        }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_all_is_put_and_nothing_a_second_time(machine: Machine) -> None:
    assert machine.put()
    files = machine.files()
    assert files["etc/udev/57-dmcopy.rules"] == "# rule\n"
    assert "ExecStart=/opt/bin/dmcopy agent" in files["etc/systemd/dmcopy-agent.service"]
    assert files["var/dmcopy"] == "0o700"
    assert files["etc/dmcopy/hooks.d"] == files["etc/dmcopy/policies.d"] == "0o755"
    assert machine.ran == [
        "udevadm control --reload",
        "systemctl daemon-reload",
        "systemd-tmpfiles --create dmcopy.conf",
        "systemctl enable --now dmcopy-agent.service",
    ]
    assert machine.put() == []
    assert machine.files() == files


def test_undo_leaves_nothing(machine: Machine) -> None:
    before = machine.files()
    machine.put()
    machine.ran.clear()
    machine.undo()
    assert machine.files() == before
    assert machine.ran == [
        "systemctl disable --now dmcopy-agent.service",
        "udevadm control --reload",
        "systemctl daemon-reload",
    ]
    assert machine.undo() == []


def test_dry_run_is_the_plan_and_changes_nothing(machine: Machine) -> None:
    before = machine.files()
    planned = [f"{s.action} {s.what}" for s in machine.setup().plan_setup() if s.action]
    assert machine.files() == before
    assert machine.ran == []
    assert machine.put() == planned


def test_file_of_an_older_version_is_replaced_and_one_that_is_no_more_is_removed(
    machine: Machine,
) -> None:
    machine.put()
    (machine.data / "rules/57-dmcopy.rules").write_text("# newer\n")
    (machine.data / "units/dmcopy-agent.service").unlink()
    machine.ran.clear()
    assert machine.put()
    files = machine.files()
    assert files["etc/udev/57-dmcopy.rules"] == "# newer\n"
    assert "etc/systemd/dmcopy-agent.service" not in files
    assert machine.ran[0] == "systemctl disable --now dmcopy-agent.service"
    assert machine.put() == []


@pytest.mark.parametrize("how", ["changed", "foreign", "masked"])
def test_file_of_an_administrator_is_not_overwritten_unless_told(
    machine: Machine, how: str
) -> None:
    path = machine.etc / "systemd/dmcopy-wrap@.service"
    if how == "foreign":
        path.parent.mkdir()
    else:
        machine.put()
        path.unlink(missing_ok=True)
    if how == "masked":
        path.symlink_to("/dev/null")
    else:
        path.write_text("his own\n")
    before = machine.files()
    with pytest.raises(Refused, match="not as dmcopy put it"):
        machine.put()
    assert machine.files() == before
    assert machine.put(replace_changed=True)
    assert not path.is_symlink()
    assert "/opt/bin/dmcopy" in path.read_text()
    machine.undo()
    assert not path.exists()


def test_undo_leaves_what_was_changed_or_added_since_and_says_so(machine: Machine) -> None:
    machine.put()
    (machine.etc / "udev/57-dmcopy.rules").write_text("his own\n")
    (machine.etc / "dmcopy/policies.d/his.toml").touch()
    said = machine.undo()
    assert f"left {machine.etc}/udev/57-dmcopy.rules: changed since it was put there" in said
    assert f"left {machine.etc}/dmcopy/policies.d: his.toml is in it" in said
    kept = {path for path, text in machine.files().items() if not text.startswith("0o")}
    assert kept == {"etc/udev/57-dmcopy.rules", "etc/dmcopy/policies.d/his.toml"}


def test_unit_that_was_disabled_since_stays_disabled(machine: Machine) -> None:
    machine.put()
    machine.enabled.clear()
    assert machine.put() == []
    (machine.data / "rules/57-dmcopy.rules").write_text("# newer\n")
    machine.put()
    assert machine.enabled == set()


def test_without_systemd_rules_only(machine: Machine) -> None:
    machine.put(systemd=False)
    files = machine.files()
    assert files["etc/udev/57-dmcopy.rules"] == "# rule\n"
    assert not [path for path in files if path.startswith(("etc/systemd", "etc/tmpfiles"))]
    assert machine.ran == ["udevadm control --reload"]
    assert machine.put(systemd=False) == []
    assert machine.put()  # systemd has come since


_COMMANDS = [
    "udevadm control --reload",
    "systemctl daemon-reload",
    "systemd-tmpfiles --create dmcopy.conf",
    "systemctl enable --now dmcopy-agent.service",
]


@pytest.mark.parametrize("fails", _COMMANDS)
def test_what_fails_in_the_middle_undoes_all(machine: Machine, fails: str) -> None:
    before = machine.files()
    machine.fail = fails
    with pytest.raises(DmcopyError):
        machine.put()
    assert machine.files() == before
    assert machine.enabled == set()
    machine.fail = ""
    machine.put()
    files = machine.files()
    machine.fail = "systemctl daemon-reload"
    with pytest.raises(LeftBehind):  # what failed fails in the undo as well, and is named
        machine.undo()
    assert machine.files() == files
    assert machine.enabled == {"dmcopy-agent.service"}


def test_run_that_was_killed_at_any_step_is_gone_on_with(machine: Machine) -> None:
    machine.put()
    (machine.data / "rules/57-dmcopy.rules").write_text("# newer\n")
    (machine.data / "units/dmcopy-wrap@.service").write_text(TWO + "# newer\n")
    count = len(machine.setup().plan_setup())
    assert count > 4
    for number in range(count):
        for step in machine.setup().plan_setup()[:number]:
            step.do(machine.host.run)  # and then killed
        machine.put()
        assert machine.put() == []
        for name, text in {"rules/57-dmcopy.rules": f"# {number}\n",
                           "units/dmcopy-wrap@.service": f"{TWO}# {number}\n"}.items():  # fmt: skip
            (machine.data / name).write_text(text)
    machine.put()
    machine.undo()
    assert not [path for path, text in machine.files().items() if not text.startswith("0o")]


def test_undo_is_refused_while_a_job_runs_or_a_device_is_wrapped(machine: Machine) -> None:
    machine.put()
    machine.places.wraps.write_text(
        '[[wrap]]\nname = "data"\nserial = "no-such-disk"\nsize_bytes = 512\n'
    )
    with pytest.raises(Refused, match="dmcopy unwrap data"):
        machine.undo()
    machine.places.wraps.unlink()
    with Journal(machine.places.journal) as journal:
        spec = CopySpec(name="one", source="/dev/mapper/d", destination="image:/x")
        journal.define("one", spec.as_json())
    lock = JobLock(machine.places.locks, "one")
    with lock, pytest.raises(Refused, match="job one is running"):
        machine.undo()
    with pytest.raises(Refused, match="job one is unfinished"):
        machine.undo()
    with Journal(machine.places.journal) as journal:
        journal.move("one", State.CANCELLED)
    said = machine.undo()
    assert [line for line in said if line.startswith("left")] == [
        f"left {machine.places.state}: journal.sqlite is in it"
    ]


def test_record_that_cannot_be_read_is_said(machine: Machine) -> None:
    machine.put()
    at = machine.places.state / "setup.json"
    at.write_text(json.dumps({"version": 2}))
    with pytest.raises(DmcopyError, match="of version 2"):
        machine.put()
    at.write_text("{")
    with pytest.raises(DmcopyError, match="cannot be read"):
        machine.put()


def test_reload_is_repeated_after_an_undo_has_put_the_files_back(machine: Machine) -> None:
    machine.fail = "systemctl enable --now dmcopy-agent.service"
    with pytest.raises(DmcopyError):
        machine.put()
    assert machine.ran[-2:] == ["udevadm control --reload", "systemctl daemon-reload"]
