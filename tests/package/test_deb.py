"""The Debian package: installed by dpkg, used, and purged, on a machine with systemd."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy import __version__
from tests.lab.harness import write_device
from tests.lab.stage import Stage
from tests.package.conftest import Machine

MIB = 1 << 20
SIZE = 16
NOTE = "dmcopy-wrap-note.service"
AGENT = "dmcopy-agent.service"
HELPERS = (
    "jobs/worker", "jobs/member", "stack/watch", "stack/unbrake", "stack/keep", "stack/md_keeper",
    "stack/md_thaw",
)  # fmt: skip


@pytest.fixture(scope="module")
def _installed(machine: Machine, package: Path) -> Iterator[None]:
    before, units = machine.files(), machine.units()
    machine.run("dpkg", "--install", str(package))
    yield
    machine.run("dpkg", "--purge", "dmcopy")
    assert machine.files() == before, "purged, and something is left"
    assert machine.units() == units


pytestmark = [pytest.mark.usefixtures("_installed")]


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("package")
    yield made
    made.close()


def test_all_is_where_a_distribution_puts_it(machine: Machine) -> None:
    listed = machine.run("dpkg", "--listfiles", "dmcopy").splitlines()
    for path in (
        "/usr/sbin/dmcopy", "/lib/udev/rules.d/57-dmcopy.rules", "/usr/lib/tmpfiles.d/dmcopy.conf",
        "/lib/systemd/system/dmcopy-wrap@.service", "/usr/share/man/man8/dmcopy.8.gz",
        "/usr/share/bash-completion/completions/dmcopy",
        "/usr/share/zsh/vendor-completions/_dmcopy",
    ):  # fmt: skip
        assert path in listed
    assert not [path for path in listed if path.startswith("/usr/share/dmcopy")]
    assert machine.run("systemctl", "is-enabled", NOTE, AGENT).split() == ["enabled", "enabled"]
    assert machine.run("systemctl", "is-active", AGENT) == "active"
    said = machine.run("systemctl", "cat", "dmcopy-wrap@x")
    assert "ExecStart=/usr/sbin/dmcopy wrap --up %i" in said
    said = machine.run("systemctl", "cat", "dmcopy-job@x", AGENT)
    assert "ExecStart=/usr/sbin/dmcopy agent --job %i" in said
    assert "ExecStopPost=-/usr/sbin/dmcopy agent --job-over %i" in said
    assert "ExecStopPost=-+/usr/sbin/dmcopy rescue" in said
    assert oct(Path("/run/dmcopy").stat().st_mode & 0o777) == "0o755"
    assert oct(Path("/var/lib/dmcopy").stat().st_mode & 0o777) == "0o700"


def test_it_runs_with_the_libraries_of_debian(machine: Machine) -> None:
    assert machine.run("dmcopy", "--version") == f"dmcopy {__version__}"
    where = "import dmcopy, sh; print(dmcopy.__file__, sh.__version__)"
    assert machine.run("/usr/bin/python3", "-c", where).split() == [
        "/usr/lib/python3/dist-packages/dmcopy/__init__.py", "1.14.2"
    ]  # fmt: skip
    checks = [json.loads(line) for line in machine.run("dmcopy", "doctor", "--json").splitlines()]
    assert not [check for check in checks if not check["ok"] and check["needed"]]
    assert next(c["detail"] for c in checks if c["name"] == "udev rule").startswith("/usr/lib/udev")
    assert "distribution's package" in machine.run("dmcopy", "setup", status=3)


def test_copy_under_writes_is_the_image_of_the_begin_time(machine: Machine, stage: Stage) -> None:
    disk = stage.disk(SIZE)
    before = random.Random(7).randbytes(SIZE * MIB)
    write_device(disk, before)
    device = stage.linear(disk)
    fd = os.open(device, os.O_RDWR | os.O_DSYNC)  # the application has it open all the time
    stage.later(os.close, fd)
    image = Path(stage.folder) / "image"
    job = ("--name", "packaged", "--hold-start", "--detach", "--verify")
    machine.run("dmcopy", "copy", device, f"image:{image}", *job)
    said = machine.run("dpkg", "--remove", "dmcopy", status=1)
    assert "jobs that have not ended" in said, "while a copy runs the package stays"
    stop = threading.Event()
    written = threading.Thread(target=write, args=(fd, stop))
    written.start()
    try:
        machine.run("dmcopy", "resume", "packaged")
        machine.run("dmcopy", "wait", "packaged")
    finally:
        stop.set()
        written.join()
    assert hashlib.sha256(image.read_bytes()).digest() == hashlib.sha256(before).digest()
    assert Path(device).read_bytes() != before, "it was written to meanwhile"
    assert "packaged" in machine.run("dmcopy", "list")
    assert machine.run("dmsetup", "table", device).split()[2] == "linear"


def test_upgrade_in_mid_copy_leaves_a_job_with_the_code_that_it_began_with(
    machine: Machine, stage: Stage, package: Path
) -> None:
    disk = stage.disk(SIZE)
    before = random.Random(9).randbytes(SIZE * MIB)
    write_device(disk, before)
    device = stage.linear(disk)
    fd = os.open(device, os.O_RDWR | os.O_DSYNC)
    stage.later(os.close, fd)
    destination = stage.disk(SIZE)
    job = ("--name", "upgraded", "--hold-start", "--detach", "--gate", "segment", "--json")
    said = machine.run("dmcopy", "copy", device, destination, *job)
    assert '"begun"' in said
    agent = machine.run("systemctl", "show", "--property=MainPID", "--value", AGENT)
    stop = threading.Event()
    written = threading.Thread(target=write, args=(fd, stop))
    written.start()
    try:
        machine.run("dpkg", "--install", str(another_version(machine, package, stage.folder)))
        assert machine.run("dmcopy", "--version") == "dmcopy 99.0"
        assert machine.run("systemctl", "is-active", AGENT) == "active"
        assert machine.run("systemctl", "show", "--property=MainPID", "--value", AGENT) != agent
        # the dead man of each retire, and the gate's watcher, are started from now on
        machine.run("dmcopy", "resume", "upgraded")
        machine.run("dmcopy", "wait", "upgraded")
    finally:
        stop.set()
        written.join()
    jobs = json.loads(machine.run("dmcopy", "top", "--once", "--json"))["jobs"]
    (ended,) = (one for one in jobs if one["job"] == "upgraded")
    assert (ended["state"], ended["exit_status"]) == ("ended", 0)
    assert ended["retired"] > 0
    assert Path(destination).read_bytes() == before
    assert Path(device).read_bytes() != before, "it was written to meanwhile"
    assert machine.run("dmsetup", "table", device).split()[2] == "linear"
    # the proof can fail: a copy that begins now has helpers of the new version
    said = machine.run("dmcopy", "copy", device, destination, "--overwrite-signature", status=5)
    assert "the copy worker died (exit status 70)" in said


def another_version(machine: Machine, package: Path, folder: str) -> Path:
    """Make a package of a later version, whose helpers do not understand those who start them."""
    tree = Path(folder) / "later"
    machine.run("dpkg-deb", "--raw-extract", str(package), str(tree))
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {__version__}", "Version: 99.0"))
    installed = tree / "usr/lib/python3/dist-packages/dmcopy"
    init = installed / "__init__.py"
    init.write_text(init.read_text().replace(f'"{__version__}"', '"99.0"'))
    for name in HELPERS:
        path = installed / f"{name}.py"
        text = path.read_text()
        assert text.count('if __name__ == "__main__":\n') == 1
        path.write_text(text.replace('"__main__":\n', '"__main__":\n    sys.exit(70)\n'))
    machine.run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), folder)
    (made,) = Path(folder).glob("dmcopy_99.0_*.deb")
    return made


def write(fd: int, stop: threading.Event) -> None:
    """Overwrite blocks here and there, durably, until told to stop."""
    where = random.Random(8)
    while not stop.is_set():
        os.pwrite(fd, b"w" * 4096, where.randrange(SIZE * MIB // 4096) * 4096)
        time.sleep(0.01)
