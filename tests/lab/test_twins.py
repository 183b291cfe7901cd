"""A copy is its source's twin: nobody sees it by mistake, and it can get an identity of its own.

Needs systemd-udevd.  Where the destination is not hidden, the links do move: the last of the
tests on links shows that the others could fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.common import Context
from dmcopy.jobs.twins import TwinStep
from dmcopy.kernel.cookie import udev_runs
from tests.lab import scene as scenes
from tests.lab.scene import CHECKOUT, Ran, Scene, digest, until
from tests.lab.stage import patiently, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

RULES = ("57-dmcopy.rules", "65-dmcopy.rules")
INSTALLED = Path("/etc/udev/rules.d")
RUNTIME = Path("/run/dmcopy")  # what the rule knows
FAST = ("-E", "lazy_itable_init=0,lazy_journal_init=0")  # an idle file system writes nothing


def settle() -> None:
    sh("udevadm", "settle", "--timeout=30")


@pytest.fixture
def rules() -> Iterator[None]:
    """Install our rules as an administrator would, until the test is over."""
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in RULES:
        shutil.copy(CHECKOUT / "udev/rules.d" / name, INSTALLED / name)
    sh("udevadm", "control", "--reload")
    yield
    for name in RULES:
        (INSTALLED / name).unlink()
    sh("udevadm", "control", "--reload")


@pytest.fixture
def scene() -> Iterator[Scene]:
    assert udev_runs(), "this test needs systemd-udevd"
    with scenes.scene("twin") as made:
        made.environment["DMCOPY_RUN_DIR"] = str(RUNTIME)
        yield made
    shutil.rmtree(RUNTIME, ignore_errors=True)


class Links:
    """Watches what leads to the source under /dev/disk; `moved` says which moved, and where to."""

    def __init__(self, source: str) -> None:
        sh("udevadm", "trigger", "--settle", "--action=change", f"--name-match={source}")
        words = sh("udevadm", "info", "--query=property", f"--name={source}").splitlines()
        found = dict(word.split("=", 1) for word in words)
        self.links = {
            link: os.readlink(link)
            for link in found.get("DEVLINKS", "").split()
            if link.startswith("/dev/disk/by-")
        }
        assert [link for link in self.links if "uuid" in link], f"no link to watch: {found}"
        self.moved: set[tuple[str, str]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def look(self) -> None:
        for link, target in self.links.items():
            now = os.readlink(link)
            if now != target:
                self.moved.add((link, os.path.join("/dev", os.path.basename(now))))

    def _watch(self) -> None:
        while not self._over.wait(0.03):
            self.look()

    def __enter__(self) -> Links:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        settle()
        self.look()
        self._over.set()
        self._thread.join()


def uuid(path: str, key: str = "UUID") -> str:
    done = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", key, path], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def files(point: str) -> dict[str, str]:
    """Give a digest of each file of a tree."""
    return {
        str(path.relative_to(point)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(point).rglob("*"))
        if path.is_file()
    }


def fill(point: str) -> None:
    for number in range(20):
        Path(point, f"file{number}").write_bytes(os.urandom(20_000))
    os.sync()


def poke(path: str) -> None:
    """Do what makes udev look again."""
    os.close(os.open(path, os.O_RDWR))
    sh("udevadm", "trigger", "--action=change", f"--name-match={path}")


def copied(scene: Scene, source: str, target: str, *options: str) -> Ran:
    ran = scene.fork("copy", source, target, "--json", *options)
    assert ran.status == 0, ran
    return ran


@contextmanager
def mounted(scene: Scene, device: str) -> Iterator[str]:
    point = Path(scene.folder, f"at-{os.path.basename(device)}")
    point.mkdir(exist_ok=True)
    sh("mount", device, str(point))
    try:
        yield str(point)
    finally:
        patiently("umount", str(point))


# out of sight


def _array(scene: Scene) -> str:
    return scene.stage.md(scene.stage.disk(17), scene.stage.disk(17))


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("kind", [_array])
def test_links_of_the_source_never_lead_to_the_copy(
    scene: Scene, kind: Callable[[Scene], str]
) -> None:
    source = scene.origin(16)
    sh("mkfs.ext4", "-q", "-L", "twins", source)
    target = kind(scene)
    with mounted(scene, source) as point, Links(source) as links:
        fill(point)
        running = scene.start(
            "copy", source, target, "--json", "--rate", "8m", "--segment", "1m", "--name", "hidden"
        )
        running.wait_for("progress")
        poke(target)
        ran = running.ended()
        assert ran.status == 0, ran
        poke(target)
        settle()
    assert links.moved == set()
    assert uuid(target) == uuid(source)
    told = ran.event("twin")
    assert told["new"] is False
    assert told["hidden"] is True
    assert told["identity"] == [f"ext4 UUID={uuid(source)} LABEL=twins"]
    # as long as it is a twin, and no longer
    assert list((RUNTIME / "hidden").iterdir()) == []
    sh("mkfs.ext4", "-q", "-F", target)
    settle()
    assert os.path.realpath(f"/dev/disk/by-uuid/{uuid(target)}") == os.path.realpath(target)


def test_without_the_rule_the_lock_keeps_udev_off_until_the_copy_is_done(scene: Scene) -> None:
    source = scene.origin(16)
    sh("mkfs.ext4", "-q", source)
    target = scene.stage.disk(16)
    with Links(source) as links:
        running = scene.start("copy", source, target, "--json", "--rate", "8m", "--segment", "1m")
        running.wait_for("progress")
        poke(target)
        time.sleep(1)
        assert links.moved == set()
        ran = running.ended()
        assert ran.event("twin")["hidden"] is False
    assert {os.path.realpath(target)} == {now for _, now in links.moved}, "and then they move"


@pytest.mark.usefixtures("rules")
def test_copy_that_is_broken_hides_nothing_and_the_links_move(scene: Scene) -> None:
    source, target = scene.origin(16), scene.stage.disk(16)
    sh("mkfs.ext4", "-q", source)

    def breaks() -> Context | None:
        setattr(TwinStep, "devno", lambda _: None)  # noqa: B010 (it hides nothing)
        return None

    with Links(source) as links:
        ran = scene.fork("copy", source, target, "--json", prepare=breaks)
        assert ran.status == 0, ran
    assert links.moved


# an identity of its own


def test_copy_of_a_mounted_file_system_is_told_of_and_made_different_later(scene: Scene) -> None:
    source, target = scene.origin(32), scene.stage.disk(32)
    sh("mkfs.ext4", "-q", "-L", "original", *FAST, source)
    with mounted(scene, source) as point:
        fill(point)
        copied(scene, source, target)
        sh("fsfreeze", "-f", point)  # and nothing else writes to it from here on
        before = digest(source)
        shown = scene.fork("identity", target)
        assert uuid(source) in shown.stdout
        assert f"{source} has the same: {uuid(source)}" in shown.stdout
        changed = scene.fork("identity", target, "--new", "--json")
        assert changed.status == 0, changed
        assert changed.event("twin")["new"] is True
        assert digest(source) == before
        sh("fsfreeze", "-u", point)
        assert uuid(target) not in ("", uuid(source))
        assert uuid(target, "LABEL").startswith("original-")
        sh("e2fsck", "-fn", target)
        with mounted(scene, target) as twin:
            assert files(twin) == files(point)
        settle()
        assert os.path.realpath(f"/dev/disk/by-uuid/{uuid(target)}") == target


@pytest.mark.parametrize(("kind", "mib"), [("xfs", 320), ("btrfs", 128)])
def test_both_file_systems_are_mounted_side_by_side(scene: Scene, kind: str, mib: int) -> None:
    source, target = scene.origin(mib), scene.stage.disk(mib)
    sh(f"mkfs.{kind}", "-q", "-L", "original", source)
    with mounted(scene, source) as point, Links(source) as links:
        fill(point)
        ran = copied(scene, source, target, "--new-identity", "--verify")
        assert ran.event("verified")["digest"] == ran.event("ended")["digest"]
        assert ran.event("twin")["identity"][0].startswith(f"{kind} UUID={uuid(target)} (was ")
        assert uuid(target) not in ("", uuid(source))
        with mounted(scene, target) as twin:
            assert files(twin) == files(point)
    assert links.moved == set()


def test_disk_with_partitions_gets_new_ones_and_new_contents(scene: Scene) -> None:
    source, target = scene.stage.disk(32), scene.stage.disk(32)
    sh("sfdisk", "-q", source, stdin="label: gpt\nsize=8M, name=root\nsize=8M, name=swap\n")
    offsets = [row["start"] * 512 for row in _rows(source)]
    file = Path(scene.folder, "fs")
    file.write_bytes(bytes(8 << 20))
    sh("mkfs.ext4", "-q", str(file))
    for offset in offsets:
        sh("dd", f"if={file}", f"of={source}", f"seek={offset}", "oflag=seek_bytes", "bs=1M")
        sh("mkswap", str(file))
    before = digest(source)
    said = copied(scene, source, target, "--new-identity").event("twin")
    assert digest(source) == before
    assert len(said["identity"]) == 5  # the table, two partitions, two contents
    old, new = _rows(source), _rows(target)
    for key in ("start", "size", "type"):
        assert [row[key] for row in old] == [row[key] for row in new]
    for key in ("uuid", "name"):
        assert not {row[key] for row in old} & {row[key] for row in new}
    for offset in offsets:
        at = ("blkid", "-p", "-o", "value", "-s", "UUID", "--offset", str(offset))
        assert sh(*at, "--size", str(8 << 20), source) != sh(*at, "--size", str(8 << 20), target)
    assert uuid(source, "PTUUID") != uuid(target, "PTUUID")


DOS = """label: dos
x1 : size=8M
x2 : type=5
x5 : size=8M
x6 : size=4M
"""
LUKS = ("--batch-mode", "--key-file", "-")
SMALL_LUKS = (
    "--type", "luks2", "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "256k",
    "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
)  # fmt: skip


def test_logical_partition_and_what_is_encrypted_get_new_identities(scene: Scene) -> None:
    """An extended partition looks like a table in the table, and is none."""
    source, target = scene.stage.disk(32), scene.stage.disk(32)
    sh("sfdisk", "-q", source, stdin=DOS)
    offsets = {row["node"][-1]: row["start"] * 512 for row in _rows(source)}
    file = Path(scene.folder, "part")

    def put(number: str, *argv: str, stdin: str | None = None) -> None:
        file.write_bytes(bytes(8 << 20))
        sh(*argv, str(file), stdin=stdin)
        at = f"seek={offsets[number]}"
        count = f"count={4 << 20}"  # nothing lies behind that
        flags = ("oflag=seek_bytes", "iflag=count_bytes", "conv=notrunc")
        sh("dd", f"if={file}", f"of={source}", at, count, *flags, "bs=1M")

    put("1", "mkswap")
    put("5", "cryptsetup", *LUKS, *SMALL_LUKS, "luksFormat", stdin="secret")
    put("6", "mkswap")
    told = copied(scene, source, target, "--new-identity").event("twin")
    assert len(told["identity"]) == 8  # the table, four partitions, three contents
    assert [line for line in told["kept"] if "LUKS" in line], told
    assert uuid(source, "PTUUID") != uuid(target, "PTUUID")
    keys = ("start", "size", "type")
    rows, new_rows = _rows(source), _rows(target)
    assert [[row[key] for key in keys] for row in rows] == [
        [row[key] for key in keys] for row in new_rows
    ]
    for number in "156":
        at = ("blkid", "-p", "-o", "value", "-s", "UUID", "--offset", str(offsets[number]))
        assert sh(*at, "--size", str(4 << 20), source) != sh(*at, "--size", str(4 << 20), target)
    where = (f"skip={offsets['5']}", "iflag=skip_bytes", "bs=8M", "count=1")
    sh("dd", f"if={target}", f"of={file}", *where)
    sh("cryptsetup", *LUKS, "open", "--test-passphrase", str(file), stdin="secret")


def _rows(disk: str) -> list[dict[str, Any]]:  # Any: JSON
    table: dict[str, Any] = json.loads(sh("sfdisk", "--json", disk))["partitiontable"]
    return list(table["partitions"])


@pytest.mark.usefixtures("rules")
def test_volume_group_of_the_copy_is_another_and_its_file_systems_too(scene: Scene) -> None:
    source, target = scene.stage.disk(48), scene.stage.disk(48)
    vg = f"vg{os.getpid()}"
    # udev's own vgchange may come late, and make the source one that is in use
    sh("vgcreate", "-q", "--setautoactivation", "n", vg, source)
    for name, size in (("data", "12m"), ("more", "8m")):
        sh("lvcreate", "-q", "-y", "-L", size, "-n", name, vg)
    sh("mkfs.ext4", "-q", *FAST, f"/dev/{vg}/data")
    with mounted(scene, f"/dev/{vg}/data") as point:
        fill(point)
        wanted = files(point)
    old = uuid(f"/dev/{vg}/data")
    settle()
    sh("vgchange", "-an", vg)
    before = digest(source)
    ran = copied(scene, source, target, "--new-identity")
    assert digest(source) == before
    (row,) = json.loads(sh("pvs", "--reportformat", "json", "-o", "vg_name", target))["report"][0][
        "pv"
    ]
    twin = row["vg_name"]
    assert twin.startswith(f"{vg}_")
    assert len(ran.event("twin")["identity"]) == 2, "the PV, and the file system in data"
    done = subprocess.run(["vgs"], capture_output=True, text=True, check=True)
    assert "WARNING" not in done.stderr, "no duplicates"
    sh("vgchange", "-ay", vg, twin)
    scene.stage.later(sh, "vgchange", "-an", vg, twin)
    settle()
    assert uuid(f"/dev/{twin}/data") not in ("", old)
    assert os.path.realpath(f"/dev/disk/by-uuid/{old}") == os.path.realpath(f"/dev/{vg}/data")
    for one in (vg, twin):
        with mounted(scene, f"/dev/{one}/data") as point:
            assert files(point) == wanted
        sh("vgck", one)


@pytest.mark.usefixtures("rules")
def test_leg_of_a_mirror_becomes_an_array_of_its_own(scene: Scene) -> None:
    source, other, target = scene.origin(24), scene.stage.disk(24), scene.stage.disk(24)
    scene.stage.later(_no_members, source, other, target)
    array = scene.stage.md(source, other)
    sh("mkfs.ext4", "-q", *FAST, array)
    with mounted(scene, array) as point, Links(array) as links:
        fill(point)
        sh("fsfreeze", "-f", point)
        state = Path(f"/sys/block/{os.path.basename(array)}/md/array_state")
        until(lambda: state.read_text().strip() == "clean", "md has written its superblocks")
        before = digest(source)
        said = copied(scene, source, target, "--new-identity").event("twin")
        assert digest(source) == before
        sh("fsfreeze", "-u", point)
        wanted = files(point)
        assert [line.split()[0] for line in said["identity"]] == ["md", "in"]
        # udev's own mdadm has taken the new array for one of several members
        settle()
        for found in _arrays_on(target):
            patiently("mdadm", "--stop", found)
        sh("mdadm", "--assemble", "--run", "--quiet", "/dev/md99", target)
        scene.stage.later(patiently, "mdadm", "--stop", "--quiet", "/dev/md99")
        settle()
        assert uuid("/dev/md99") not in ("", uuid(array))
        with mounted(scene, "/dev/md99") as twin:
            assert files(twin) == wanted
    assert links.moved == set()


def _arrays_on(disk: str) -> list[str]:
    kname = os.path.basename(os.path.realpath(disk))
    return [f"/dev/{path.name}" for path in Path(f"/sys/block/{kname}/holders").iterdir()]


def _no_members(*disks: str) -> None:
    """Take down what udev's mdadm assembles again, until it finds nothing any more."""

    def wiped(disk: str) -> bool:
        for array in _arrays_on(disk):
            subprocess.run(["mdadm", "--stop", array], capture_output=True, check=False)
        done = subprocess.run(["wipefs", "--all", disk], capture_output=True, check=False)
        return done.returncode == 0 and not _arrays_on(disk)

    for disk in disks:
        until(lambda disk=disk: wiped(disk), "nothing of md is left")  # type: ignore[misc]


def test_swap_in_an_image_file_gets_a_new_uuid(scene: Scene) -> None:
    source, image = scene.origin(8), str(Path(scene.folder, "image"))
    sh("mkswap", "-L", "space", source)
    said = copied(scene, source, f"image:{image}", "--new-identity").event("twin")
    assert said["identity"][0].startswith(f"swap UUID={uuid(image)} (was {uuid(source)})")
    first = uuid(image)
    assert first not in ("", uuid(source))
    assert scene.fork("identity", f"image:{image}", "--new").status == 0
    assert uuid(image) not in ("", first, uuid(source))


# what goes wrong


def _tool(scene: Scene, name: str, script: str) -> None:
    """Put a program before the system's own."""
    folder = Path(scene.folder, "bin")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    scene.environment["PATH"] = f"{folder}:{os.environ['PATH']}"


@pytest.mark.usefixtures("rules")
def test_identity_that_cannot_be_changed_is_said_and_is_tried_again(scene: Scene) -> None:
    source, target = scene.origin(16), scene.stage.disk(16)
    sh("mkfs.ext4", "-q", source)
    fails = f'case "$*" in *-U*) echo no such luck >&2; exit 1;; esac; exec {_real("tune2fs")} "$@"'
    _tool(scene, "tune2fs", fails)
    with Links(source) as links:
        ran = scene.run("copy", source, target, "--json", "--verify", "--new-identity")
        assert ran.status == 7, ran
        ended = ran.event("ended")
        assert ended["state"] == "copied"
        assert ended["verified"] is True
        assert ended["kind"] == "identity"
        for words in (
            f"the copy on {target} is complete, but its identity is not new",
            "tune2fs returned 1: no such luck",
            f"dmcopy identity {target} --new",
        ):
            assert words in ran.said
    assert links.moved == set()
    assert digest(target) == digest(source) or uuid(target) == uuid(source)
    refused = scene.fork("resume", ended["job"], "--verify")
    assert refused.status == 3
    assert "cannot be read back as the image any more" in refused.said
    del scene.environment["PATH"]
    again = scene.fork("resume", ended["job"], "--json")
    assert again.status == 0, again
    assert again.event("ended")["verified"] is True
    assert again.of_kind("verified") == []
    assert uuid(target) not in ("", uuid(source))


@pytest.mark.usefixtures("rules")
def test_killed_while_the_identity_is_changed_is_mended_or_gone_on_with(scene: Scene) -> None:
    source, target = scene.origin(16), scene.stage.disk(16)
    sh("mkfs.ext4", "-q", source)
    table = sh("dmsetup", "table", source)
    begun = Path(scene.folder, "begun")
    _tool(scene, "e2fsck", f"touch {begun}; exec sleep 2")
    for mend in (("rescue",), ()):
        begun.unlink(missing_ok=True)
        name = f"killed{len(mend)}"
        with Links(source) as links:
            words = ("--new-identity", "--overwrite-signature", "--name", name)
            running = scene.start("copy", source, target, *words)
            until(begun.exists, "the change is on its way")
            running.kill(signal.SIGKILL)
            running.ended()
            assert "dmcopy-killed" in sh("dmsetup", "ls")
            if mend:
                assert scene.fork(*mend, name).status == 0
                scene.assert_clean(source, table)
                settle()
        assert links.moved == set()
    del scene.environment["PATH"]
    again = scene.fork("resume", name, "--json")
    assert again.status == 0, again
    scene.assert_clean(source, table)
    assert uuid(target) not in ("", uuid(source))
    assert list((RUNTIME / "hidden").iterdir()) == []


def _real(tool: str) -> str:
    found = shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin")
    assert found is not None
    return found


def test_only_a_copy_that_nobody_uses_gets_a_new_identity(scene: Scene) -> None:
    disk, target, other = scene.stage.disk(16), scene.stage.disk(16), scene.stage.disk(16)
    source = scene.stage.linear(disk)
    for path in (source, other):
        sh("mkfs.ext4", "-q", path)
    copied(scene, source, target)
    old = digest(source), digest(target), digest(other)

    def refused(path: str, words: str) -> None:
        ran = scene.fork("identity", path, "--new")
        assert ran.status == 3, ran
        assert words in ran.said

    refused(source, "is not on record as a copy")
    refused(other, "is not on record as a copy")
    with mounted(scene, target):
        refused(target, "is mounted on")
    # the source of one job, and the copy of another
    copied(scene, target, source, "--overwrite-signature")
    refused(source, "is the source of job")
    refused(target, "is the source of job")
    assert digest(other) == old[2]
    assert uuid(source) == uuid(target)


def test_what_cannot_get_a_new_identity_is_refused_before_anything_is_copied(scene: Scene) -> None:
    source, target = scene.origin(16), scene.stage.disk(16)
    old = scene.picture(target)
    nothing = scene.fork("copy", source, target, "--new-identity")
    assert nothing.status == 3, nothing
    assert "carries nothing that has an identity" in nothing.said
    journal = scene.stage.disk(8)
    sh("mke2fs", "-q", "-O", "journal_dev", journal)
    sh("mkfs.ext4", "-q", "-J", f"device={journal}", source)
    outside = scene.fork("copy", source, target, "--new-identity")
    assert outside.status == 3, outside
    assert "has its journal on another device" in outside.said
    assert scene.picture(target)[target] == old[target]
