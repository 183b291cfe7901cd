"""The role ``agent`` of the collection, applied over ssh to a machine with systemd.

Ansible is the checkout's; on the machine it runs Debian's Python, which sees nothing of that.
"""

from __future__ import annotations

import grp
import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from lab.deb import copy_sources
from lab.guest import venv
from tests.lab.fleet import Control, Play
from tests.lab.stage import Stage
from tests.package.conftest import Machine

ETC: Final = Path("/etc/dmcopy")
SOCKET: Final = Path("/run/dmcopy/agent.sock")
AGENT: Final = "dmcopy-agent.service"
ADDRESS: Final = "127.0.0.1"
GROUP: Final = "dmcopy-operators"
HOME: Final = Path("/opt/dmcopy")
LINK: Final = Path("/usr/local/sbin/dmcopy")

# a playbook's start, and each task, take their time in a guest
pytestmark = pytest.mark.timeout(900)

SETTINGS: Final = {"group": GROUP}
NIGHTLY: Final = {
    "name": "nightly",
    "source": "/dev/mapper/data",
    "destination": {"image": "/backup/{job}.img"},
    "calendar": "*-*-* 02:00",
    "options": {"verify": True, "rate": "100m"},
}
EXTRA: Final = {**NIGHTLY, "name": "extra"}


def applied(name: str, **variables: object) -> dict[str, Any]:
    """Give a play that applies the role."""
    return {
        "name": name, "hosts": "machine", "gather_facts": False,
        "roles": [{"role": "dmcopy.dmcopy.agent", "vars": variables}],
    }  # fmt: skip


def settings(**variables: object) -> dict[str, Any]:
    """Give the task that applies what the role does of settings, once dmcopy is there."""
    role = {"name": "dmcopy.dmcopy.agent", "tasks_from": "settings.yml"}
    return {"name": "apply", "ansible.builtin.include_role": role, "vars": variables}


def refused(name: str, apply: dict[str, Any]) -> dict[str, Any]:
    """Give a play that fails where *apply* does not fail."""
    passed = {"name": "passed", "ansible.builtin.fail": {"msg": "it was not refused"}}
    went_on = {"name": "refused", "ansible.builtin.debug": {"msg": "refused"}}
    return {
        "name": name, "hosts": "machine", "gather_facts": False,
        "tasks": [{"name": "all", "block": [apply, passed], "rescue": [went_on]}],
    }  # fmt: skip


class Applied(Control):
    """Ansible, and the machine."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(Path(stage.folder), python="/usr/bin/python3")
        (self.folder / "hosts.ini").write_text(f"machine ansible_host={ADDRESS}\n")
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.start_sshd(stage, "machine", ADDRESS, environment)

    def do(self, *plays: dict[str, Any], options: tuple[str, ...] = ()) -> Play:
        """Run plays, as one playbook."""
        (self.folder / "play.yml").write_text(json.dumps(plays))  # which is YAML
        return self.play("play.yml", "--user=root", *options)


def changes(play: Play, name: str) -> list[str]:
    """Give the tasks of a play that changed something."""
    return [
        line["task"].rpartition(" : ")[2]
        for line in play.lines
        if line["play"] == name and line["result"].get("changed")
    ]


def failures(play: Play, name: str) -> list[str]:
    return [
        str(line["result"])
        for line in play.lines
        if line["play"] == name and line["how"] == "failed"
    ]


def result(play: Play, name: str, task: str) -> dict[str, Any]:
    (found,) = [
        line["result"]
        for line in play.lines
        if line["play"] == name and line["task"].rpartition(" : ")[2] == task
    ]
    return dict(found)


def has_group(name: str) -> bool:
    return any(one.gr_name == name for one in grp.getgrall())


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("role")
    yield made
    made.close()


@pytest.fixture
def _purged(machine: Machine, package: Path) -> Iterator[None]:
    before, units = machine.files(), machine.units()
    yield
    machine.run("dpkg", "--purge", "dmcopy")
    Path("/var/cache", package.name).unlink()
    if has_group(GROUP):
        machine.run("groupdel", GROUP)
    for made in ("/run/dmcopy", "/var/lib/dmcopy"):
        shutil.rmtree(made, ignore_errors=True)
    assert machine.files() == before, "purged, and something is left"
    assert machine.units() == units


FIRST: Final = [
    "Copy the Debian package to the host", "Install it", "Set what the agent does",
    "Write policies", "Restart the agent", "Have the agent read the policies again",
]  # fmt: skip
# what is wrong, and which words say so
ARGUMENTS: Final[dict[str, tuple[str, dict[str, object]]]] = {
    "a word of the role": ("settings.groups", {"agent_settings": {"groups": "x"}}),
    "a word of a policy": ("policies.rate", {"agent_policies": [{**NIGHTLY, "rate": "1m"}]}),
}
WRONG: Final[dict[str, tuple[str, dict[str, object]]]] = {
    "a setting": (
        "/etc/dmcopy/agent.toml: metrics-listen: '0.0.0.0:1'",
        {"agent_settings": {"metrics_listen": "0.0.0.0:1"}, "agent_policies": [EXTRA]},
    ),
    "a policy": (
        "'fast' is not a rate",
        {
            "agent_settings": {"group": "never-made"},
            "agent_policies": [EXTRA, {**NIGHTLY, "options": {"rate": "fast"}}],
        },
    ),
}


@pytest.mark.usefixtures("_purged")
def test_package_is_installed_and_set_as_predicted_and_a_running_job_goes_on(
    machine: Machine, package: Path, stage: Stage
) -> None:
    control = Applied(stage)
    wanted: dict[str, object] = {
        "agent_file": str(package), "agent_settings": SETTINGS, "agent_policies": [NIGHTLY],
    }  # fmt: skip
    before = machine.files()
    check = control.do(applied("first", **wanted), options=("--check", "--diff"))
    assert check.status == 0, check.out
    assert machine.files() == before
    assert not has_group(GROUP)

    role = {"name": "dmcopy.dmcopy.agent"}
    include = {"name": "apply", "ansible.builtin.include_role": role}
    done = control.do(
        *(refused(name, {**include, "vars": {**wanted, **more}})
          for name, (_, more) in ARGUMENTS.items()),
        applied("first", **wanted),
        applied("again", **wanted),
        *(refused(name, settings(**wanted | more)) for name, (_, more) in WRONG.items()),
        options=("--diff",),
    )  # fmt: skip
    assert done.status == 0, done.out
    # what is predicted is what is done, but for the service, which there is not yet
    assert changes(done, "first") == FIRST
    said = ["Say that it would be installed" if name == "Install it" else name for name in FIRST]
    assert changes(check, "first") == said[:4]
    for task in ("Set what the agent does", "Write policies"):
        now, then = (result(play, "first", task) for play in (done, check))
        assert "has not read" in then["warnings"][0]
        if task == "Write policies":
            (now,), (then,) = now["results"], then["results"]
        assert now["diff"] == then["diff"]
    assert changes(done, "again") == []
    for name, (words, _) in (ARGUMENTS | WRONG).items():
        assert changes(done, name) == [], name
        assert any(words in failure for failure in failures(done, name)), (name, done.out)
    assert os.listdir(ETC / "policies.d") == ["nightly.toml"]
    assert not has_group("never-made")
    assert tomllib.loads((ETC / "agent.toml").read_text()) == {"group": GROUP}
    assert SOCKET.stat().st_gid == grp.getgrnam(GROUP).gr_gid
    assert machine.run("systemctl", "is-enabled", AGENT) == "enabled"
    assert machine.run("systemctl", "is-active", AGENT) == "active"

    image = f"image:{stage.folder}/held.img"
    source = stage.linear(stage.disk())
    machine.run("dmcopy", "copy", source, image, "--name", "held", "--hold-start", "--detach")
    try:
        job, agent = pid_of_job(machine), pid_of_agent(machine)
        other = settings(**{**wanted, "agent_settings": {"group": "adm"}})
        after = control.do(
            {"name": "after", "hosts": "machine", "gather_facts": False, "tasks": [other]}
        )
        assert after.status == 0, after.out
        assert changes(after, "after") == ["Set what the agent does", "Restart the agent"]
        assert SOCKET.stat().st_gid == grp.getgrnam("adm").gr_gid
        assert pid_of_agent(machine) != agent
        assert pid_of_job(machine) == job is not None, "the job has gone on"
    finally:
        machine.run("dmcopy", "cancel", "held")


def pid_of_agent(machine: Machine) -> str:
    return machine.run("systemctl", "show", "--property=MainPID", "--value", AGENT)


def pid_of_job(machine: Machine) -> int | None:
    (job,) = (json.loads(line) for line in machine.run("dmcopy", "list", "--json").splitlines())
    pid: int | None = job["pid"]
    return pid


@pytest.fixture
def _undone(machine: Machine) -> Iterator[None]:
    before, units = machine.files(), machine.units()
    yield
    machine.run(str(LINK), "setup", "--undo")
    LINK.unlink()
    for made in (HOME, ETC, Path("/run/dmcopy"), Path("/var/lib/dmcopy")):
        shutil.rmtree(made, ignore_errors=True)
    assert machine.files() == before
    assert machine.units() == units


@pytest.mark.usefixtures("_undone")
def test_wheel_is_installed_without_a_network_and_set_up_once(
    machine: Machine, stage: Stage
) -> None:
    tree = Path(stage.folder, "tree")
    copy_sources(tree)
    machine.run(
        str(venv() / "bin/python"), "-m", "pip", "--python", "/usr/bin/python3", "wheel", "--quiet",
        "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", stage.folder, str(tree),
    )  # fmt: skip
    (wheel,) = Path(stage.folder).glob("dmcopy-*.whl")
    wanted: dict[str, object] = {
        "agent_file": str(wheel),
        # with what Debian has of the libraries
        "agent_virtualenv_command": "/usr/bin/python3 -m venv --system-site-packages",
        "agent_pip_arguments": "--no-index",
        "agent_packages": [],  # they are there
    }
    control = Applied(stage)
    done = control.do(applied("first", **wanted), applied("again", **wanted))
    assert done.status == 0, done.out
    assert changes(done, "first") == [
        "Make the directory of the virtual environment", "Copy the wheel to the host",
        "Install it with pip", "Link the program", "Install rules, units and directories",
        "Restart the agent",
    ]  # fmt: skip
    assert changes(done, "again") == []
    said = machine.run("systemctl", "cat", AGENT)
    assert f"ExecStart={HOME}/bin/dmcopy agent" in said
    assert machine.run("systemctl", "is-active", AGENT) == "active"
    assert "nothing to do" in machine.run(str(LINK), "setup")
