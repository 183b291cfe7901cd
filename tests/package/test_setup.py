"""dmcopy from pip in a virtual environment, and `dmcopy setup`, on a machine with systemd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.deb import copy_sources
from lab.guest import venv
from tests.package.conftest import Machine

HOME = Path("/opt/dmcopy")
PROGRAM = str(HOME / "bin/dmcopy")
NOTE = "dmcopy-wrap-note.service"
AGENT = "dmcopy-agent.service"


@pytest.fixture(scope="module")
def _installed(machine: Machine) -> Iterator[None]:
    tree = Path("/run/lab/tree")
    copy_sources(tree)
    machine.run(
        "/usr/bin/python3", "-m", "venv", "--without-pip", "--system-site-packages", str(HOME)
    )
    machine.run(
        str(venv() / "bin/python"), "-m", "pip", "--python", str(HOME / "bin/python"), "install",
        "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", str(tree),
    )  # fmt: skip
    yield
    shutil.rmtree(HOME)
    shutil.rmtree(tree)


@pytest.mark.usefixtures("_installed")
def test_setup_puts_all_in_order_and_undo_leaves_nothing(machine: Machine) -> None:
    before, units = machine.files(), machine.units()
    planned = machine.run(PROGRAM, "setup", "--dry-run").splitlines()
    assert machine.files() == before
    done = machine.run(PROGRAM, "setup").splitlines()
    assert len(done) == len(planned) > 8
    assert "nothing to do" in machine.run(PROGRAM, "setup")
    said = machine.run("systemctl", "cat", "dmcopy-wrap@x", NOTE)
    assert f"ExecStart={PROGRAM} wrap --up %i" in said
    said = machine.run("systemctl", "cat", "dmcopy-job@x", AGENT)
    assert f"ExecStart={PROGRAM} agent --job %i" in said
    assert f"ExecStopPost=-+{PROGRAM} rescue" in said
    assert machine.run("systemctl", "is-enabled", NOTE, AGENT).split() == ["enabled", "enabled"]
    assert machine.run("systemctl", "is-active", AGENT) == "active"
    assert oct(Path("/run/dmcopy").stat().st_mode & 0o777) == "0o755"
    verify = machine.run(
        "systemd-analyze",
        "verify",
        "--man=no",
        *map(str, Path("/etc/systemd/system").glob("dmcopy-*")),
    )
    assert "dmcopy" not in verify
    checks = [json.loads(x) for x in machine.run(PROGRAM, "doctor", "--json").splitlines()]
    assert not [check for check in checks if not check["ok"] and check["needed"]]
    details = {check["name"]: check["detail"] for check in checks}
    assert details["udev rule"].startswith("/etc/udev")
    assert details["setup"] == "all is there"

    # the units start this very program, under the limits that they set
    machine.run("systemctl", "start", "dmcopy-wrap@nothing", status=1)
    machine.run("journalctl", "--sync")
    said = machine.run("journalctl", "--no-pager", "-u", "dmcopy-wrap@nothing")
    assert "nothing is not wrapped" in said or "no wrap nothing" in said, said
    machine.run("systemctl", "reset-failed", "dmcopy-wrap@nothing")

    machine.run(PROGRAM, "setup", "--undo")
    for made in ("/run/dmcopy", "/var/lib/dmcopy"):  # what the agent has made, and may be needed
        shutil.rmtree(made, ignore_errors=True)
    assert machine.files() == before
    assert machine.units() == units
