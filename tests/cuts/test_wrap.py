"""A wrapped disk, systemd, and a power cut in mid-copy: the next boot mounts it as it always does.

One machine lives up to the cut; each test takes its disks from there.  The witness is what the
kernel's snapshot held at the begin time, read before anything was copied.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.guest import CHECKOUT, CUT, Disk, run
from tests.cuts.host import LIMIT, STATE, Host, is_whole, make_disks
from tests.cuts.machine import TALLY, said
from tests.cuts.wrap_side import JOB, NAME, UUID

pytestmark = [pytest.mark.cuts, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cut(place: Path) -> Iterator[Host]:
    """Give a machine whose power failed while its wrapped disk was copied."""
    folder = place / "wrap"
    folder.mkdir()
    host = Host(folder, make_disks(folder / "disks"))
    ready: list[float] = []

    def when() -> bool:
        if not ready and (host.share / "ready").exists():
            ready.append(time.monotonic())
        return bool(ready) and time.monotonic() - ready[0] > 0.5

    result = host.live("begin", root=host.root(fstab=STATE, etc=None), cut=when)
    assert result.status == CUT, said(result)
    yield host
    shutil.rmtree(folder)


@pytest.fixture
def next_life(cut: Host, folder: Path) -> Host:
    """Give a machine with the disks as the cut left them."""
    return Host(folder, cut.disks.copied(folder / "disks"))


def test_wrap_takes_the_links_of_what_is_under_it(cut: Host) -> None:
    wrapped, links = cut.read("wrapped"), cut.read("links")
    assert wrapped["before"][f"by-uuid/{UUID}"] == "ubda1"
    assert any(link.startswith("by-partuuid/") for link in wrapped["before"])
    assert wrapped["again"][0] == 0, "wrapping it again changes nothing"
    assert links[f"by-uuid/{UUID}"].startswith("dm-"), "UUID= means the wrap"
    assert links[f"by-dmcopy/{NAME}"] == "ubda1"
    assert not [link for link in links if link.startswith("by-partuuid/")]


def test_power_cut_boot_mount_load_resume_gives_the_image(cut: Host, next_life: Host) -> None:
    found = next_life.again(cut.share / "etc")
    assert found["mounted"] == f"/dev/mapper/{NAME}"
    assert found["unit"] == "Result=success", found["said"]
    assert found["note"] == "Result=success"
    assert found["list"]["jobs"] == [JOB]
    assert "snapshot-origin" in found["before_resume"]
    assert found["resume"][0] == 0, found["resume"]
    assert "snapshot-origin" not in found["table"]
    assert found["left"] == []
    witness = (cut.share / "witness").read_bytes()
    assert next_life.disks.destination.read_bytes() == witness
    TALLY.right += 1
    is_whole(next_life.disks.destination, cut.read("bounds"), next_life.folder)


def test_disk_that_another_system_mounted_in_between_has_lost_its_point_in_time(
    cut: Host, next_life: Host
) -> None:
    rescue = run(
        [sys.executable, "-m", "tests.cuts.wrap_side", "rescue"],
        disks=[Disk(path=path) for path in next_life.disks],
        memory="512M", timeout=LIMIT, artefacts=next_life.folder / "rescue", cwd=CHECKOUT,
        udev=False, quiet=True,
    )  # fmt: skip
    assert rescue.status == 0, said(rescue)
    found = next_life.again(cut.share / "etc")
    assert found["mounted"] == f"/dev/mapper/{NAME}", "the machine boots all the same"
    assert found["unit"] == "Result=exit-code", "and systemd shows that something is wrong"
    assert "the point in time of job cut is lost" in found["said"]
    assert "its file system was mounted since" in found["said"]
    assert found["list"]["jobs"] == []
    assert "snapshot-origin" not in found["before_resume"]
    assert found["resume"][0] == 4, found["resume"]
    assert found["left"] == []
    TALLY.lost += 1


def test_broken_wrap_shown_before_its_snapshot_gives_a_wrong_image(
    cut: Host, next_life: Host
) -> None:
    found = next_life.again(cut.share / "etc", broken=True)
    assert found["resume"][0] == 0, "nobody notices: " + str(found["resume"])
    witness = (cut.share / "witness").read_bytes()
    assert next_life.disks.destination.read_bytes() != witness
