"""A mounted file system is copied while it is written, and the copy is a clean one.

Files that were synced before begin time are in the copy with the right content, and none is
that was begun after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.units import MIB
from tests.lab import harness, stamp
from tests.lab.harness import Copied, assert_copied, assert_large_copied, run_copy
from tests.lab.stage import Stage, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

proof = pytest.mark.proof

SIZES = {"ext4": 24, "xfs": 300}  # MiB
READ_ONLY = {"ext4": "ro,noload", "xfs": "ro,nouuid"}


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("dmcm")
    try:
        yield made
    finally:
        made.close()


def origin(stage: Stage, kind: str) -> tuple[str, str]:
    """Make a device with a mounted file system; give both paths."""
    path = stage.linear(stage.disk(SIZES[kind]))
    sh(f"mkfs.{kind}", "-q", *(["-b", "4096"] if kind == "ext4" else []), path)
    return path, stage.mount(path)


def assert_same(kind: str, copied: Copied, path: str) -> None:
    """The copy is what the kernel's snapshot held; xfs's is too large for the guest's memory."""
    if kind == "xfs":
        assert_large_copied(copied, path)
    else:
        image = Path(path)
        assert_copied(copied, image.read_bytes() if image.is_file() else harness.read_device(path))


def assert_clean(stage: Stage, kind: str, image: str) -> None:
    """Ask the file system's own checker, which changes nothing."""
    if kind == "ext4":
        sh("e2fsck", "-fn", image)
        return
    # A frozen xfs has a log that is to be replayed (for unlinked files), which a mount does.
    file = os.path.isfile(image)
    with harness.mounted(stage, image, "nouuid,loop" if file else "nouuid"):
        pass
    sh("xfs_repair", "-n", *(["-f"] if file else []), image)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("ext4", ("--chunk", "16k", "--segment", "1m"), marks=proof),
        ("ext4", ("--chunk", "256k", "--segment", "256k")),
        ("ext4", ("--chunk", "16k", "--segment", "1m", "--gate", "segment")),
        ("ext4", ("--chunk", "16k", "--segment", "1m", "--batch", "2m", "--order", "hot")),
        ("xfs", ("--chunk", "64k", "--segment", "16m", "--cow", "48m")),
        ("xfs", ("--chunk", "4k", "--segment", "4m", "--cow", "64m")),
    ],
    ids=["ext4-16k", "ext4-256k", "ext4-gate", "ext4-hot", "xfs-64k", "xfs-4k"],
)
def test_files_in_the_copy_are_those_of_begin_time(
    stage: Stage, kind: str, options: tuple[str, ...]
) -> None:
    path, mount = origin(stage, kind)
    table, number = harness.table_text(path), harness.minor(path)
    target = stage.disk(SIZES[kind])
    log = Path(stage.folder) / "files.log"
    with harness.writing_files(mount, log):
        copied = run_copy(stage.folder, path, f"block:{target}", "--verify", *options)
        after = len(log.read_text().splitlines())
        harness.until(lambda: len(log.read_text().splitlines()) > after + 3)
    assert harness.table_text(path) == table
    assert harness.minor(path) == number
    assert_same(kind, copied, target)
    assert_clean(stage, kind, target)
    # beside the origin, which is still mounted
    with harness.mounted(stage, target, READ_ONLY[kind]) as copy:
        safe, later = harness.prove_files(str(copy), log, copied.t0, copied.t1)
    assert safe
    assert later


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_file_under_stamps_is_in_the_copy_as_of_begin_time(stage: Stage, kind: str) -> None:
    path, mount = origin(stage, kind)
    file = Path(mount) / "stamped"
    with open(file, "wb") as new:
        new.truncate(8 * MIB)
    stamp.fill(str(file), seed=4, processes=2)
    log = Path(stage.folder) / "log"
    image = harness.image_of(stage.folder)
    with harness.stamping(str(file), log, seed=4):
        copied = run_copy(stage.folder, path, f"image:{image}", "--chunk", "16k", "--cow", "48m")
    assert_same(kind, copied, image)
    assert_clean(stage, kind, image)
    with harness.mounted(stage, image, f"{READ_ONLY[kind]},loop") as copy:
        verdict = stamp.check(str(copy / "stamped"), log, 4, t0=copied.t0, t1=copied.t1)
    assert verdict.wrong == []
    assert verdict.writes > 0
