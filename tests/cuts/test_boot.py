"""A copy that a policy began goes on by itself: after a power cut, and after an ordinary reboot.

One machine, three boots of it, each with the application's load: in the first the power fails,
the second is ended by ``systemctl reboot``, and in the third the copy ends.  After the first
nobody asks dmcopy for anything: ``dmcopy-resume.service`` and the unit of the plugged in disk both
find the interrupted job.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from lab.guest import CHECKOUT, CUT, venv
from tests.cuts.boot_side import LABEL, POLICY, UNITS
from tests.cuts.host import FIRST, MOUNT, SIZE, STATE, Found, Host, is_whole, make_disks
from tests.cuts.machine import TALLY, said, stamped
from tests.cuts.wrap_side import NAME

pytestmark = [pytest.mark.cuts, pytest.mark.timeout(600)]

_LOAD: Final = f"""\
[Unit]
RequiresMountsFor=/data
[Service]
Environment=PYTHONPATH={CHECKOUT} PYTHONDONTWRITEBYTECODE=1
ExecStart={venv()}/bin/python -m tests.cuts.boot_side load %i
"""
# as systemctl reboot does it where there is no logind
_REBOOT: Final = """\
[Service]
ExecStopPost=
ExecStopPost=systemctl start --no-block --job-mode=replace-irreversibly reboot.target
"""
_STOP_SECONDS: Final = 45.0  # half of what systemd gives one unit


class Lives(NamedTuple):
    """What the machine was like in its boots, and what is left of it."""

    host: Host
    second: Found
    third: Found
    stopping: float  # seconds from the request to reboot to its end


def installed(host: Host, *, seed: int | None = None) -> Path:
    """Lay out the root as ``dmcopy setup`` leaves it, with the application of that seed."""
    is_first = seed is None
    root = host.root(
        fstab=STATE if is_first else STATE + MOUNT,
        etc=None if is_first else host.share / "etc",
        enabled=UNITS,
    )
    units = root / "etc/systemd/system"
    (units / "lab-load@.service").write_text(_LOAD)
    if not is_first:
        (units / f"lab.target.wants/lab-load@{seed}.service").symlink_to("../lab-load@.service")
    return root


def opt_in(disk: Path) -> None:
    """Make the destination a disk with one partition, by whose name it takes part."""
    disk.write_bytes(stamped(99, FIRST + SIZE + (1 << 20)))
    table = f"label: gpt\nstart={FIRST >> 9}, size={SIZE >> 9}, name={LABEL}\n"
    subprocess.run(["sfdisk", "-q", "--wipe=always", str(disk)], input=table, text=True, check=True)


@pytest.fixture(scope="module")
def lives(place: Path) -> Iterator[Lives]:
    """Live three boots of one machine."""
    folder = place / "boot"
    folder.mkdir()
    host = Host(folder, make_disks(folder / "disks"))
    opt_in(host.disks.destination)
    result = host.live(
        "begin", root=installed(host), side="boot_side", cut=(host.share / "ready").exists
    )
    assert result.status == CUT, said(result)

    root = installed(host, seed=2)
    drop_in = root / "etc/systemd/system/lab.service.d/reboot.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(_REBOOT)
    result = host.live("under-way", root=root, side="boot_side")
    ended = time.time()
    assert result.status == 0, said(result)
    stopping = ended - (host.share / "found").stat().st_mtime
    second = host.read("found")
    shutil.copy(host.share / "lab-console.txt", host.share / "second-console.txt")
    shutil.copy(host.disks.source, folder / "rebooted-source")
    shutil.copy(host.disks.state, folder / "rebooted-state")

    result = host.live("to-the-end", root=installed(host, seed=3), side="boot_side")
    assert result.status == 0, said(result)
    yield Lives(host, second, host.read("found"), stopping)
    shutil.rmtree(folder)


def test_power_cut_in_mid_copy_and_the_next_boot_goes_on_by_itself(lives: Lives) -> None:
    found = lives.second
    assert found["mounted"] == f"/dev/mapper/{NAME}"
    assert [job["state"] for job in found["jobs"]] == ["copying"], "one job, and no second one"
    assert "snapshot-origin" in found["table"]
    assert found["files"] > 0, "the application writes"
    assert_nothing_failed(found)


def test_reboot_in_mid_copy_stops_in_order(lives: Lives) -> None:
    console = (lives.host.share / "second-console.txt").read_text()
    assert lives.stopping < _STOP_SECONDS, console[-3000:]
    for word in ("timed out", "SIGKILL", "Killing process"):
        assert word not in console, console[-3000:]
    folder = lives.host.folder
    for disk, offset in ((folder / "rebooted-source", FIRST), (folder / "rebooted-state", 0)):
        assert is_clean(disk, offset), f"{disk.name} was not unmounted: {console[-3000:]}"


def is_clean(disk: Path, offset: int) -> bool:
    """Tell whether the ext4 file system there was unmounted by whoever mounted it."""
    volume = disk.with_name(f"{disk.name}-volume")
    with disk.open("rb") as whole, volume.open("wb") as file:
        whole.seek(offset)
        shutil.copyfileobj(whole, file)
    text = subprocess.run(
        ["dumpe2fs", "-h", str(volume)], capture_output=True, text=True, check=True
    ).stdout
    return "needs_recovery" not in text and "state:         clean\n" in text


def test_reboot_in_mid_copy_and_the_next_boot_ends_it_by_itself(lives: Lives) -> None:
    found = lives.third
    (job,) = found["jobs"]
    assert job["job"].startswith(f"{POLICY}-")
    assert job["job"] == lives.second["jobs"][0]["job"], "one job, from the first boot to the last"
    assert (job["state"], job["ended"]["exit_status"]) == ("ended", 0)
    assert job["ended"]["bytes_resumed"] > 0
    assert "snapshot" not in found["table"]
    assert found["left"] == []
    assert_nothing_failed(found)
    host = lives.host
    image = host.folder / "image"
    with host.disks.destination.open("rb") as disk:
        disk.seek(FIRST)
        image.write_bytes(disk.read(SIZE))
    assert image.read_bytes() == (host.share / "witness").read_bytes()
    TALLY.right += 1
    is_whole(image, host.read("bounds"), host.folder)


def assert_nothing_failed(found: Found) -> None:
    told = "\n".join(found["journal"])
    assert found["on_failure"] == "", told
    assert found["failed"] == "", told
    for unit, state in found["units"].items():  # the resume's, the agent's, that of the disk ...
        assert "Result=success" in state, f"{unit}: {state}\n{told}"
