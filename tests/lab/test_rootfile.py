"""A file is read from a stranger's file system: what is on it stays, and nothing is kept by it.

The witness is the whole device, read past the page cache before and after.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.kernel import rootfile
from dmcopy.kernel.command import Commander, Launcher, launch_sh, launch_subprocess
from dmcopy.units import Bytes
from tests.lab.scene import digest
from tests.lab.stage import Stage, patiently, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

_MAKE: Final = {"vfat": ("mkfs.vfat",), "ext4": ("mke2fs", "-q", "-t", "ext4")}
_TEXT: Final = 'label = "x"\n'


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("dmct-rootfile")
    yield made
    made.close()


def look(node: str, kind: str, stage: Stage, name: str = "a.toml") -> str:
    point = Path(stage.folder, "point")
    return rootfile.read(Commander(), node, kind, name, most=Bytes(4096), point=point)


def filled(stage: Stage, kind: str) -> str:
    """Make a file system with one file that is right, and each that is not."""
    node = stage.disk(8)
    sh(*_MAKE[kind], node)
    point = Path(stage.folder, "made")
    point.mkdir()
    sh("mount", node, str(point))
    (point / "a.toml").write_text(_TEXT)
    (point / "large").write_text("x" * 4097)
    (point / "folder").mkdir()
    if kind != "vfat":
        (point / "link").symlink_to("/etc/passwd")
        os.mkfifo(point / "pipe")
    patiently("umount", str(point))
    return node


def debugfs(node: str, *requests: str) -> None:
    for request in requests:
        sh("debugfs", "-w", "-R", request, node)


@pytest.mark.parametrize("kind", ["vfat", "ext4"])
def test_file_is_read_and_every_other_thing_is_told_in_a_line(stage: Stage, kind: str) -> None:
    node = filled(stage, kind)
    if kind == "ext4":  # the kernel takes such an inode away, even with ro,noload
        debugfs(node, "sif large links_count 0", "unlink large", "ssv last_orphan 13")
        debugfs(node, f"write {__file__} large")
    before = digest(node)
    assert look(node, kind, stage) == _TEXT
    wrong = {"large": "larger than 4096", "folder": "no regular file", "none": "has no file none"}
    if kind == "ext4":
        wrong |= {"link": "no regular file", "pipe": "no regular file"}
    for name, why in wrong.items():
        with pytest.raises(DmcopyError, match=why) as caught:
            look(node, kind, stage, name)
        assert len(str(caught.value).splitlines()) == 1
    assert digest(node) == before


def test_file_system_that_is_none_or_mounted_elsewhere_is_told(stage: Stage) -> None:
    empty = stage.disk(8)
    for kind in ("vfat", "ext4"):
        with pytest.raises(DmcopyError, match=f"^cannot .*{empty}: [^\n]*$"):
            look(empty, kind, stage)
    node = filled(stage, "vfat")
    point = stage.mount(node)
    with pytest.raises(DmcopyError, match=f"^cannot mount {node}: [^\n]*(busy|mounted)[^\n]*$"):
        look(node, "vfat", stage)
    assert Path(point, "a.toml").read_text() == _TEXT


@pytest.mark.parametrize(("kind", "launch"), [("vfat", launch_subprocess), ("ext4", launch_sh)])
def test_device_that_hangs_is_given_up_and_let_go(
    stage: Stage, kind: str, launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfile, "_SECONDS", 1.0)
    monkeypatch.setattr("dmcopy.kernel.command._KILLED_SECONDS", 0.5)
    node = stage.linear(filled(stage, kind))
    run = Commander(launch)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    sh("dmsetup", "suspend", "--noflush", node)
    try:
        began = time.monotonic()
        with pytest.raises(DmcopyError, match=f"{node} does not answer within 1 s"):
            rootfile.read(
                run, node, kind, "a.toml", most=Bytes(4096), point=Path(stage.folder, "p")
            )
        assert time.monotonic() - began < 8
        assert node not in Path("/proc/mounts").read_text(), "nobody else sees the mount"
    finally:
        sh("dmsetup", "resume", node)
    end = time.monotonic() + 20
    while sh("dmsetup", "info", "--columns", "--noheadings", "-o", "open", node) != "0":
        assert time.monotonic() < end, "it is still open"
        time.sleep(0.1)
    assert look(node, kind, stage) == _TEXT


def test_reader_that_is_killed_leaves_nothing_mounted(stage: Stage) -> None:
    node = filled(stage, "vfat")
    point = Path(stage.folder, "p")
    point.mkdir()
    # the reader itself, with a program in the place of dd that does not end
    script = rootfile._FROM_FAT.replace("exec dd", "echo there; exec sleep 60 #")
    argv = ("unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", script, "sh", node,
            str(point), "a.toml", "4096")  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == [
            f"regular file, {len(_TEXT)}",
            "there",
        ]
        assert node not in Path("/proc/mounts").read_text(), "nobody else sees the mount"
        assert node in Path(f"/proc/{process.pid}/mounts").read_text()
        with pytest.raises(AssertionError, match=r"busy|in use"):
            sh("mke2fs", "-q", node)
        process.kill()
    sh("mke2fs", "-q", node)  # it is let go with the process
