"""Wraps of real devices, with udev: what comes up, what is refused, what is put back.

The boot after a power cut is in tests/cuts/test_wrap.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import PointInTimeLost
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.evidence import refuse_written
from tests.lab import luns
from tests.lab.stage import Stage, patiently, sh

pytestmark = pytest.mark.lab

NAME = f"dmwr-{os.getpid()}"


class Dmcopy(NamedTuple):
    """Runs ``dmcopy`` in this process; its places are in *folder*."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: str, status: int = 0) -> str:
        self.capsys.readouterr()
        ended = main(argv)
        out, said = self.capsys.readouterr()
        assert ended == status, f"{argv}: {ended}: {out}{said}"
        return out + said

    @property
    def config(self) -> Path:
        return self.folder / "etc/wraps.toml"

    @property
    def rules(self) -> Path:
        return Path("/run/udev/rules.d/63-zz-dmcopy-wraps.rules")

    def states(self) -> dict[str, str]:
        lines = self("wrap", "--list", "--json").splitlines()
        return {view["name"]: view["state"] for view in map(json.loads, lines)}


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage("dmwr")
    yield stage
    patiently("udevadm", "settle", "--timeout=20")  # what it began to look at it has open
    stage.close()


@pytest.fixture
def dmcopy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Dmcopy]:
    folder = Path(stage.folder)
    for word, place in (("STATE", "state"), ("RUN", "run"), ("CONFIG", "etc")):
        monkeypatch.setenv(f"DMCOPY_{word}_DIR", str(folder / place))
    monkeypatch.setenv("DMCOPY_RULES_DIR", "/run/udev/rules.d")
    yield Dmcopy(folder, capsys)
    sh("udevadm", "control", "--reload")


@pytest.fixture
def part(stage: Stage) -> str:
    """Give a partition with a file system: it has a name for ever, and links."""
    node = stage.partition(stage.disk(16))
    sh("mkfs.ext4", "-q", node)
    settle(node)
    return node


@pytest.fixture(autouse=True)
def _unwrapped() -> Iterator[None]:
    yield
    if os.path.exists(f"/dev/mapper/{NAME}"):
        patiently("dmsetup", "remove", NAME)


def settle(node: str) -> None:
    sh("udevadm", "trigger", "--action=change", "--settle", f"--name-match={node}")


def links_to(node: str) -> set[str]:
    """Give the directories of the /dev/disk links that lead to a device."""
    kname = os.path.basename(os.path.realpath(node))
    found = Path("/dev/disk").glob("*/*")
    return {link.parent.name for link in found if os.path.basename(os.path.realpath(link)) == kname}


def test_wrap_takes_the_links_and_unwrap_gives_them_back_both_as_often_as_you_like(
    dmcopy: Dmcopy, part: str
) -> None:
    before = links_to(part)
    assert {"by-uuid", "by-partuuid"} <= before
    for changes in (True, False):
        assert would(dmcopy, "wrap", part, NAME) is changes
        dmcopy("wrap", part, NAME)
        assert dmcopy.states() == {NAME: "up"}
        assert links_to(part) == {"by-dmcopy"}
        assert "by-uuid" in links_to(f"/dev/mapper/{NAME}")
    settle(f"/dev/mapper/{NAME}")
    sh("udevadm", "trigger", "--action=add", "--settle", f"--name-match=/dev/mapper/{NAME}")
    assert "by-uuid" in links_to(f"/dev/mapper/{NAME}"), "a coldplug takes nothing away"
    assert "is up" in dmcopy("wrap", "--up", NAME)
    assert would(dmcopy, "unwrap", NAME) is True
    assert "removed" in dmcopy("unwrap", NAME)
    assert would(dmcopy, "unwrap", NAME) is False
    assert "is not wrapped" in dmcopy("unwrap", NAME)
    assert links_to(part) == before
    assert (dmcopy.states(), dmcopy.rules.exists()) == ({}, False)


def test_wrap_that_is_used_stays(dmcopy: Dmcopy, part: str, stage: Stage) -> None:
    dmcopy("wrap", part, NAME)
    point = stage.mount(f"/dev/mapper/{NAME}")
    for dry_run in ((), ("--dry-run",)):
        assert f"mounted on {point}" in dmcopy("unwrap", NAME, *dry_run, status=3)
    target = stage.file(0)
    os.unlink(target)
    dmcopy("copy", f"/dev/mapper/{NAME}", target, "--name", "job", "--hold-start", "--detach")
    assert "job job copies" in dmcopy("unwrap", NAME, status=3)
    assert "is being copied" in dmcopy("copy", f"/dev/mapper/{NAME}", f"{target}2", status=3)
    assert dmcopy.states() == {NAME: "up"}, "also through the snapshot"
    dmcopy("cancel", "job")
    sh("umount", point)
    dmcopy("unwrap", NAME)
    sh("mount", part, point)  # the stage unmounts it


def would(dmcopy: Dmcopy, *argv: str) -> bool:
    """Ask what would be done; gives whether that is anything."""
    there = dmcopy.states()
    said = json.loads(dmcopy(*argv, "--dry-run", "--json"))
    assert said["event"] == "wrap_planned"
    assert dmcopy.states() == there
    return bool(said["changes"])


def refused(dmcopy: Dmcopy, device: str, name: str, why: str) -> None:
    before = sh("dmsetup", "info", "-c", "--noheadings", "-o", "name", "--sort", "name")
    for dry_run in (("--dry-run",), ()):
        said = dmcopy("wrap", device, name, *dry_run, status=3)
        assert why in said, said
    assert sh("dmsetup", "info", "-c", "--noheadings", "-o", "name", "--sort", "name") == before
    assert not dmcopy.config.exists(), "nothing was changed"


def test_device_that_is_used_is_refused(dmcopy: Dmcopy, part: str, stage: Stage) -> None:
    stage.mount(part)
    refused(dmcopy, part, NAME, "is in use (mounted on")


def test_device_that_another_holds_is_refused(dmcopy: Dmcopy, part: str, stage: Stage) -> None:
    stage.linear(part)
    refused(dmcopy, part, NAME, "is in use (held by dm-")


def test_what_needs_no_wrap_or_could_not_be_found_again_is_refused(
    dmcopy: Dmcopy, part: str, stage: Stage
) -> None:
    disk = stage.disk(8)
    refused(dmcopy, disk, NAME, "has no name that it keeps")
    refused(dmcopy, part.removesuffix("p1"), NAME, "has no name that it keeps")
    other = stage.linear(disk)
    refused(dmcopy, other, NAME, "is a dm device already")
    refused(dmcopy, part, os.path.basename(other), "already, and it is no wrap")


def test_copy_of_its_whole_disk_is_no_other_device(dmcopy: Dmcopy, part: str, stage: Stage) -> None:
    twin = stage.disk(16)
    sh("dd", f"if={part.removesuffix('p1')}", f"of={twin}", "bs=1M", "conv=fsync", "status=none")
    sh("partx", "--add", "--nr", "1", twin)
    stage.later(patiently, "partx", "--delete", "--nr", "1", twin)
    settle(f"{twin}p1")
    refused(dmcopy, part, NAME, "are both partuuid")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{part} /data ext4 defaults 0 2", "names {part} itself"),
        ("UUID={uuid} {folder}/state ext4 defaults 0 2", "it could never be at boot"),
    ],
)
def test_what_could_not_boot_is_refused(dmcopy: Dmcopy, part: str, line: str, why: str) -> None:
    uuid = sh("blkid", "--match-tag", "UUID", "--output", "value", part)
    before = Path("/etc/fstab").read_text() if Path("/etc/fstab").exists() else ""
    Path("/etc/fstab").write_text(line.format(part=part, uuid=uuid, folder=dmcopy.folder) + "\n")
    try:
        refused(dmcopy, part, NAME, why.format(part=part))
    finally:
        Path("/etc/fstab").write_text(before)


def test_line_that_may_lead_to_a_copy_at_boot_is_told(dmcopy: Dmcopy, part: str) -> None:
    uuid = sh("blkid", "--match-tag", "UUID", "--output", "value", part)
    before = Path("/etc/fstab").read_text() if Path("/etc/fstab").exists() else ""
    Path("/etc/fstab").write_text(f"UUID={uuid} /data ext4 defaults 0 2\n")
    try:
        out = dmcopy("wrap", part, NAME)
    finally:
        Path("/etc/fstab").write_text(before)
    assert f"write /dev/mapper/{NAME} in place of UUID={uuid}" in out
    dmcopy("unwrap", NAME)


def test_one_device_has_one_wrap(dmcopy: Dmcopy, part: str, stage: Stage) -> None:
    dmcopy("wrap", part, NAME)
    text = dmcopy.config.read_text()
    assert "is wrapped already" in dmcopy("wrap", part, "other", status=3)
    second = stage.partition(stage.disk(10))
    sh("sfdisk", "--quiet", "--disk-id", second.removesuffix("p1"), "0xd31c0b1e")
    settle(second)
    assert "is the wrap of another device" in dmcopy("wrap", second, NAME, status=3)
    assert dmcopy.config.read_text() == text
    dmcopy("unwrap", NAME)


def test_wrap_whose_disk_was_pulled_out_is_told_so_and_can_be_taken_away(dmcopy: Dmcopy) -> None:
    with luns.scsi_debug(8) as disk:
        settle(disk)
        dmcopy("wrap", disk, NAME)
        assert dmcopy.states() == {NAME: "up"}
        Path("/sys/block", os.path.basename(disk), "device/delete").write_text("1")
        sh("udevadm", "settle", "--timeout=20")
        assert dmcopy.states() == {NAME: "missing"}
        assert "missing" in dmcopy("wrap", "--list")
        assert '"under": null' in dmcopy("unwrap", NAME, "--dry-run", "--json")
        dmcopy("unwrap", NAME)
        assert dmcopy.states() == {}
        assert not os.path.exists(f"/dev/mapper/{NAME}")


def test_device_that_became_smaller_or_is_gone_is_not_brought_up(dmcopy: Dmcopy, part: str) -> None:
    dmcopy("wrap", part, NAME)
    sh("dmsetup", "remove", NAME)
    disk = part.removesuffix("p1")
    sh("partx", "--delete", "--nr", "1", disk)
    assert "is not there" in dmcopy("wrap", "--up", NAME, status=3)
    assert dmcopy.states() == {NAME: "missing"}
    text = dmcopy.config.read_text()
    sh("partx", "--add", "--nr", "1", disk)
    settle(part)
    dmcopy.config.write_text(text.replace(str(8 << 20), str(16 << 20)))
    assert "is smaller than it was" in dmcopy("wrap", "--up", NAME, status=3)
    dmcopy.config.write_text(text.replace(str(8 << 20), str(4 << 20)))
    assert "has grown to" in dmcopy("wrap", "--up", NAME)
    assert sh("blockdev", "--getsize64", f"/dev/mapper/{NAME}") == str(4 << 20)
    dmcopy("unwrap", NAME)


def test_device_that_is_mounted_past_its_wrap_is_said(
    dmcopy: Dmcopy, part: str, stage: Stage
) -> None:
    dmcopy("wrap", part, NAME)
    sh("dmsetup", "remove", NAME)
    stage.mount(part)
    assert "is in use (mounted on" in dmcopy("wrap", "--up", NAME, status=3)
    assert "past the wrap" in dmcopy("wrap", "--all", status=3)
    assert dmcopy.states() == {NAME: "down"}
    dmcopy("unwrap", NAME)


def test_half_made_wrap_is_found_by_rescue_and_by_up(dmcopy: Dmcopy, part: str) -> None:
    dmcopy("wrap", part, NAME)
    sh("dmsetup", "remove", NAME)
    for mend in (("rescue",), ("wrap", "--up", NAME)):
        sh("dmsetup", "create", NAME, "--uuid", f"DMCOPYWRAP-{NAME}", "--notable")
        assert dmcopy.states() == {NAME: "half made"}
        dmcopy(*mend)
    assert dmcopy.states() == {NAME: "up"}
    dmcopy("unwrap", NAME)


def test_wrapped_array_is_copied_while_it_is_mounted(dmcopy: Dmcopy, stage: Stage) -> None:
    array = stage.md(stage.disk(24), stage.disk(24))
    refuse_written(Sysfs().devno_of(array), array, Sysfs())
    sh("mkfs.ext4", "-q", array)
    dmcopy("wrap", array, NAME)
    assert 'md_uuid = "' in dmcopy.config.read_text()
    point = stage.mount(f"/dev/mapper/{NAME}")
    Path(point, "file").write_bytes(os.urandom(4 << 20))
    sh("sync", "--file-system", point)
    target = stage.file(24)
    os.unlink(target)
    out = dmcopy("copy", f"/dev/mapper/{NAME}", target, "--verify", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    planned: dict[str, Any] = events[0]  # Any: JSON
    assert (planned["provider"], events[-1]["verified"]) == ("splice", True)
    sh("umount", point)
    assert os.path.getsize(target) == int(sh("blockdev", "--getsize64", array))
    dmcopy("unwrap", NAME)
    again = stage.disk(file=target)
    assert sh("e2fsck", "-fn", again)
    back = stage.mount(again)
    assert Path(back, "file").stat().st_size == 4 << 20
    sh("mount", array, point)  # the stage unmounts it


def test_md_counts_what_is_written_to_it(stage: Stage) -> None:
    """Its members count md's own superblocks as well, so that they would always say written."""
    array = stage.md(stage.disk(8), stage.disk(8))
    devno = Sysfs().devno_of(array)
    refuse_written(devno, array, Sysfs())
    with open(array, "r+b") as device:
        device.write(b"x" * 4096)
        device.flush()
        os.fsync(device.fileno())
    with pytest.raises(PointInTimeLost, match="was written after the machine was started"):
        refuse_written(devno, array, Sysfs())
