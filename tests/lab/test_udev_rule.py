"""Our twins of a device are invisible: no /dev/disk link, no PV, no scan leads to them.

Needs systemd-udevd.  The last test takes the rule and the flags away and shows that the
others could fail: then the link *is* stolen.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dmcopy.core.table import Table
from dmcopy.kernel.command import Commander
from dmcopy.kernel.cookie import UDEV_FLAGS, Cookies, udev_runs
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.kernel.dmsetup import Dmsetup
from tests.lab.scene import until

pytestmark = pytest.mark.lab

MIB = 1 << 20
RULE = "57-dmcopy.rules"
PREFIX = f"dmur-{os.getpid()}"
CHUNK = 8


def run(*argv: str, ok: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode in ok, f"{argv}: {done.stderr}"
    return done.stdout


def settle() -> None:
    run("udevadm", "settle", "--timeout=60")


class Application(NamedTuple):
    """A dm device of somebody else's with a file system, over a loop device."""

    name: str
    link: str  # /dev/disk/by-uuid/...
    lower: str  # major:minor of the loop device
    cow: str
    sectors: int

    def linked_name(self) -> str:
        """Give the dm name of what the by-uuid link leads to."""
        kname = os.path.basename(os.path.realpath(self.link))
        path = Path(f"/sys/block/{kname}/dm/name")
        return path.read_text().strip() if path.exists() else kname


def loop(path: Path, size: int) -> tuple[str, str]:
    path.touch()
    os.truncate(path, size)
    made = run("losetup", "--find", "--show", str(path)).strip()
    rdev = os.stat(made).st_rdev
    return made, f"{os.major(rdev)}:{os.minor(rdev)}"


@pytest.fixture
def rule() -> Iterator[None]:
    """Install our rule as an administrator would, until the test is over."""
    source = Path(__file__).parents[2] / "udev/rules.d" / RULE
    installed = Path("/etc/udev/rules.d") / RULE
    installed.parent.mkdir(parents=True, exist_ok=True)
    installed.write_text(source.read_text())
    run("udevadm", "control", "--reload")
    yield
    installed.unlink()
    run("udevadm", "control", "--reload")


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    assert udev_runs(), "this test needs systemd-udevd"
    disk, lower = loop(tmp_path / "disk", 32 * MIB)
    cow_disk, cow = loop(tmp_path / "cow", 8 * MIB)
    # what is told of the loop device is told before there is a file system that it could show
    run("udevadm", "trigger", "--settle", "--action=change", disk)
    name = f"{PREFIX}-app"
    sectors = 32 * MIB // 512
    table = f"0 {sectors} linear {lower} 0\n"
    subprocess.run(["dmsetup", "create", name], input=table, text=True, check=True)
    run("mkfs.ext4", "-q", "-F", f"/dev/mapper/{name}")
    settle()
    uuid = run("blkid", "-o", "value", "-s", "UUID", f"/dev/mapper/{name}").strip()
    link = f"/dev/disk/by-uuid/{uuid}"
    until(
        lambda: os.path.islink(link), "udev has seen it"
    )  # it is told by inotify: no settle waits
    yield Application(name, link, lower, cow, sectors)
    for _ in range(4):
        for line in run("dmsetup", "ls").splitlines():
            if line.startswith(PREFIX):
                each = line.split()[0]
                run("dmsetup", "remove", "--retry", each, ok=(0, 1))
    settle()
    run("losetup", "--detach", disk)
    run("losetup", "--detach", cow_disk)
    assert PREFIX not in run("dmsetup", "ls")
    assert "0x0d4d" not in run("ipcs", "-s")


@pytest.fixture(params=["ioctl", "dmsetup"])
def dm(request: pytest.FixtureRequest, tmp_path: Path) -> Dm:
    if request.param == "dmsetup":
        return Dmsetup(Commander())
    return DmIoctl(cookies=Cookies(tmp_path / "cookies"))


def splice_twins(dm: Dm, app: Application, prefix: str = "DMCOPY-") -> dict[str, str]:
    """Do what a copy does; give name and node of the twins."""
    source, snap = f"{PREFIX}-source", f"{PREFIX}-snap"
    original = dm.table(app.name)
    made = dm.create(source, f"{prefix}{source}", original)
    rows = f"0 {app.sectors} snapshot {made.devno} {app.cow} P {CHUNK}"
    twin = dm.create(snap, f"{prefix}{snap}", Table.parse(rows))
    dm.load(app.name, Table.parse(f"0 {app.sectors} snapshot-origin {made.devno}"))
    dm.resume(app.name)
    settle()
    minor = (info.devno.partition(":")[2] for info in (made, twin))
    return dict(zip((source, snap), (f"/dev/dm-{n}" for n in minor), strict=True))


def unsplice(dm: Dm, app: Application) -> None:
    dm.load(app.name, dm.table(f"{PREFIX}-source"))
    dm.resume(app.name)
    dm.remove(f"{PREFIX}-snap")
    dm.remove(f"{PREFIX}-source")
    settle()


def poke(nodes: dict[str, str]) -> None:
    """Do what makes udev look again: a trigger, and a close after an open for writing."""
    for node in nodes.values():
        os.close(os.open(node, os.O_RDWR))
        run("udevadm", "trigger", "--action=change", f"--name-match={node}")
        run("udevadm", "trigger", "--action=add", f"--name-match={node}")
    settle()


def properties(node: str) -> dict[str, str]:
    lines = run("udevadm", "info", "--query=property", f"--name={node}").splitlines()
    found = dict(line.split("=", 1) for line in lines)
    found["DEVLINKS"] = " ".join(sorted(found.get("DEVLINKS", "").split()))  # in no order
    return found


@pytest.mark.usefixtures("rule")
def test_by_uuid_link_stays_with_the_application(dm: Dm, application: Application) -> None:
    assert application.linked_name() == application.name
    nodes = splice_twins(dm, application)
    assert application.linked_name() == application.name
    poke(nodes)
    assert application.linked_name() == application.name
    for name, node in nodes.items():
        links = properties(node).get("DEVLINKS", "").split()
        assert [link for link in links if link.startswith("/dev/disk/")] == []
        assert f"/dev/mapper/{name}" in links
    unsplice(dm, application)
    assert application.linked_name() == application.name


@pytest.mark.usefixtures("rule")
def test_twins_are_not_ready_for_anybody(dm: Dm, application: Application) -> None:
    nodes = splice_twins(dm, application)
    poke(nodes)
    for node in nodes.values():
        found = properties(node)
        assert found["DM_UDEV_DISABLE_OTHER_RULES_FLAG"] == "1"
        assert found["SYSTEMD_READY"] == "0"
        assert "ID_FS_UUID" not in found
    unsplice(dm, application)


@pytest.mark.usefixtures("rule")
def test_application_keeps_its_properties(application: Application, tmp_path: Path) -> None:
    before = properties(f"/dev/mapper/{application.name}")
    dm = DmIoctl(cookies=Cookies(tmp_path / "cookies"))
    splice_twins(dm, application)
    unsplice(dm, application)
    after = properties(f"/dev/mapper/{application.name}")
    changing = {"USEC_INITIALIZED", "SEQNUM", "DM_COOKIE", "DM_ACTIVATION"}
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }


def test_hidden_device_of_an_owner_stays_hidden(application: Application) -> None:
    # LVM hides its -real and -cow devices by flags in its own cookies: a resume of ours must
    # not show them again
    name = f"{PREFIX}-hidden"
    dm = DmIoctl()
    info = dm.create(name, f"OWNER-{name}")
    node = f"/dev/dm-{info.devno.partition(':')[2]}"
    whole = f"0 {application.sectors} linear {application.lower} 0"
    dm.load(name, Table.parse(whole))
    owners = dm.prepare_resume(name)
    owners.set_udev_flags(UDEV_FLAGS)
    owners()
    settle()

    def hidden() -> dict[str, str]:
        found = properties(node)
        assert "ID_FS_UUID" not in found
        return {k: v for k, v in found.items() if k.startswith("DM_UDEV_DISABLE")}

    before = hidden()
    assert before["DM_UDEV_DISABLE_DISK_RULES_FLAG"] == "1"
    resumes: list[Callable[[], None]] = [dm.prepare_resume(name), lambda: dm.resume(name)]
    for resume in resumes:
        dm.load(name, Table.parse(whole))
        resume()
        settle()
        assert hidden() == before
        assert application.linked_name() == application.name
    dm.remove(name)


@pytest.mark.usefixtures("rule")
def test_lvm_and_blkid_do_not_see_the_twins(dm: Dm, tmp_path: Path) -> None:
    disk, lower = loop(tmp_path / "pv", 32 * MIB)
    cow_disk, cow = loop(tmp_path / "pvcow", 8 * MIB)
    sectors = 32 * MIB // 512
    name = f"{PREFIX}-app"
    table = f"0 {sectors} linear {lower} 0\n"
    subprocess.run(["dmsetup", "create", name], input=table, text=True, check=True)
    only = ("--config", f'devices {{ filter=["a|^/dev/mapper/{PREFIX}|","a|^/dev/dm-|","r|.*|"] }}')
    run("pvcreate", "-q", *only, f"/dev/mapper/{name}")
    run("vgcreate", "-q", *only, f"vg{os.getpid()}", f"/dev/mapper/{name}")
    settle()
    app = Application(name, "", lower, cow, sectors)
    seen = run("pvs", *only, "--noheadings", "-o", "pv_name").split()
    nodes = splice_twins(dm, app)
    poke(nodes)
    assert run("pvs", *only, "--noheadings", "-o", "pv_name").split() == seen
    links = run("udevadm", "info", "--query=property", f"--name=/dev/mapper/{name}")
    assert "LVM2_member" in links
    for node in nodes.values():
        assert "ID_FS_TYPE" not in properties(node)
    unsplice(dm, app)
    run("vgremove", "-q", "-y", *only, f"vg{os.getpid()}")
    run("dmsetup", "remove", "--retry", name)
    settle()
    run("losetup", "--detach", disk)
    run("losetup", "--detach", cow_disk)


def test_flags_alone_hide_what_the_ioctl_backend_makes(
    application: Application, tmp_path: Path
) -> None:
    dm = DmIoctl(cookies=Cookies(tmp_path / "cookies"))
    splice_twins(dm, application)
    assert application.linked_name() == application.name
    unsplice(dm, application)


def test_without_rule_and_flags_the_link_is_stolen(application: Application) -> None:
    dm = Dmsetup(Commander())
    nodes = splice_twins(dm, application, prefix="NOTOURS-")
    poke(nodes)
    assert application.linked_name() in nodes
    unsplice(dm, application)
