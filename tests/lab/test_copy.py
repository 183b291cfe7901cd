"""``dmcopy copy`` as a user runs it, against the kernel's own view of the begin time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.units import KIB, MIB
from tests.lab import harness, snapshots, stamp
from tests.lab.harness import assert_copied, differing, read_device, run_copy
from tests.lab.stage import Stage, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

proof = pytest.mark.proof

MIBS = 8
ODD = 8 * MIB - 5 * 512  # no multiple of any chunk, nor of 4 KiB


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("dmcc")
    try:
        yield made
    finally:
        made.close()


def origin(stage: Stage, length: int = MIBS * MIB) -> str:
    """Make a device over a loop device, with content that says where it belongs."""
    path = stage.linear(stage.disk(MIBS), length // 512)
    harness.write_device(path, harness.pattern(length))
    return path


# under load


@pytest.mark.parametrize(
    ("chunk", "segment", "load", "how"),
    [
        ("4k", "256k", "stamp", "--batch 1m"),
        pytest.param("4k", "4m", "fio", "--batch 4m", marks=proof),
        ("4k", "256k", "fio", "--gate segment"),
        ("16k", "1m", "fio", "--order hot --batch 1m"),
        ("16k", "1m", "stamp", "--gate segment --order cow"),
        ("16k", "16m", "stamp", ""),
        ("64k", "4m", "stamp", "--no-retire"),
        ("64k", "256k", "fio", "--order cow --batch 1m"),
        ("256k", "16m", "fio", ""),
        ("256k", "1m", "stamp", "--order hot"),
    ],
)
def test_copy_under_load_is_the_kernels_image(
    stage: Stage, chunk: str, segment: str, load: str, how: str
) -> None:
    path = origin(stage)
    before = harness.table_text(path)
    log = Path(stage.folder) / "log"
    options = ["--chunk", chunk, "--segment", segment, "--verify", *how.split()]
    if load == "fio":
        image = harness.image_of(stage.folder)
        with harness.fio(path, path):
            copied = run_copy(stage.folder, path, f"image:{image}", *options)
        data = Path(image).read_bytes()
    else:
        target = stage.disk(MIBS)
        stamp.fill(path, seed=3, processes=2)
        with harness.stamping(path, log, seed=3):
            copied = run_copy(stage.folder, path, f"block:{target}", *options)
        data = read_device(target)
        verdict = stamp.check(target, log, 3, t0=copied.t0, t1=copied.t1)
        assert verdict.wrong == []
    assert_copied(copied, data)
    assert copied.ended["verified"] is True
    assert harness.table_text(path) == before


def test_length_that_is_no_multiple_of_the_chunk_is_copied_to_its_end(stage: Stage) -> None:
    path = origin(stage, ODD)
    image = harness.image_of(stage.folder)

    def overwrite_the_end(_: object) -> None:
        harness.write_device(path, b"!" * (64 * KIB), ODD - 64 * KIB)

    with harness.fio(path, path):
        copied = run_copy(
            stage.folder, path, f"image:{image}", at={"begun": overwrite_the_end}
        )  # fmt: skip
    assert_copied(copied, Path(image).read_bytes())
    assert os.path.getsize(image) == ODD


@pytest.mark.parametrize("kind", ["linear", "striped"])
def test_origin_of_several_targets_is_spliced_and_put_back(stage: Stage, kind: str) -> None:
    """Table, name, minor, open fds and the mount stay."""
    one, two = stage.disk(16), stage.disk(16)
    half = 12 * MIB // 512
    if kind == "linear":
        path = stage.dm(f"0 {half} linear {one} 8\n{half} {half} linear {two} 0\n")
    else:
        rest = 8 * MIB // 512
        path = stage.dm(
            f"0 {half} striped 2 128 {one} 0 {two} 0\n{half} {rest} linear {one} {half // 2}\n"
        )
    sh("mkfs.ext4", "-q", path)
    mount = stage.mount(path)
    table, number = harness.table_text(path), harness.minor(path)
    (Path(mount) / "kept").write_bytes(b"kept")
    with open(f"{mount}/open", "wb") as held:
        held.write(b"before ")
        copied = run_copy(stage.folder, path, f"image:{harness.image_of(stage.folder)}")
        held.write(b"after")
        held.flush()
        os.fsync(held.fileno())
    assert_copied(copied, Path(harness.image_of(stage.folder)).read_bytes())
    assert harness.table_text(path) == table
    assert harness.minor(path) == number
    assert Path(f"{mount}/open").read_bytes() == b"before after"


# idle devices


@pytest.mark.parametrize("kind", ["loop", "brd", "partition", "dm"])
def test_idle_device_is_claimed_and_copied(stage: Stage, kind: str) -> None:
    image = harness.image_of(stage.folder)
    if kind == "brd":
        with snapshots.ram_disks(1, 4 * MIB) as (path,):
            assert_idle_copied(stage, path, image)
        return
    path = stage.disk(16)
    if kind == "partition":
        path = stage.partition(path)
    if kind == "dm":
        path = stage.linear(path)
    assert_idle_copied(stage, path, image)


def assert_idle_copied(stage: Stage, path: str, image: str) -> None:
    content = harness.pattern(harness.sectors_of(path) * 512)
    harness.write_device(path, content)
    refused: list[str] = []

    def try_to_claim(_: object) -> None:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
        except OSError as exc:
            refused.append(str(exc.strerror))

    copied = run_copy(
        stage.folder, path, f"image:{image}", "--rate", "8m", witness=False,
        at={"begun": try_to_claim},
    )  # fmt: skip
    assert copied.status == 0, copied.stderr
    assert copied.event("planned")["provider"] == "idle"
    assert copied.event("begun")["snapshot"] is None
    assert differing(Path(image).read_bytes(), content) == []
    assert refused == ["Device or resource busy"]


def test_idle_device_written_meanwhile_loses_the_point_in_time(stage: Stage) -> None:
    """A claim keeps mounts away, but not a rude writer."""
    path = stage.disk(32)
    harness.write_device(path, harness.pattern(32 * MIB))
    image = harness.image_of(stage.folder)
    copied = run_copy(
        stage.folder, path, f"image:{image}", "--segment", "256k", "--rate", "16m", witness=False,
        at={"begun": lambda _: harness.write_device(path, b"rude" * 1024, 20 * MIB)},
    )  # fmt: skip
    assert copied.status == 4, copied.stderr
    assert copied.ended["kind"] == "point-in-time-lost"
    assert "was written while it was copied" in copied.stderr
    assert not os.path.exists(image)
    assert not list(Path(stage.folder).glob("*.partial"))


# destinations


def test_image_is_sparse_and_gets_its_name_at_the_end(stage: Stage) -> None:
    path = stage.linear(stage.disk(32))
    harness.write_device(path, harness.pattern(2 * MIB), 10 * MIB)
    image = harness.image_of(stage.folder)
    seen: list[bool] = []
    copied = run_copy(
        stage.folder, path, f"image:{image}", "--cow", "auto", "--segment", "1m", witness=False,
        at={"begun": lambda _: seen.append(os.path.exists(image))},
    )  # fmt: skip
    assert copied.status == 0, copied.stderr
    assert seen == [False]
    assert os.path.getsize(image) == 32 * MIB
    assert os.stat(image).st_blocks * 512 <= 3 * MIB
    assert copied.ended["bytes_zero"] == 30 * MIB
    assert differing(Path(image).read_bytes(), read_device(path)) == []
    assert not list(Path(stage.folder).glob("*.partial*"))


def test_zero_segments_arrive_over_a_dirty_and_larger_destination(stage: Stage) -> None:
    path = stage.linear(stage.disk(MIBS))
    content = bytes(3 * MIB) + harness.pattern(MIB) + bytes(4 * MIB)
    harness.write_device(path, content)
    target = stage.disk(MIBS + 4)
    harness.write_device(target, b"\xa5" * ((MIBS + 4) * MIB))
    with open(path, "rb"):
        copied = run_copy(
            stage.folder, path, f"block:{target}", "--segment", "1m", "--verify"
        )  # fmt: skip
    assert_copied(copied, read_device(target, MIBS * MIB))
    found = read_device(target)
    assert differing(found[: MIBS * MIB], content) == []
    assert found[MIBS * MIB :] == b"\xa5" * (4 * MIB), "what lies behind the image was touched"
    assert copied.ended["bytes_zero"] == 7 * MIB


def test_verify_fails_when_the_destination_changed_under_it(stage: Stage) -> None:
    path = origin(stage)
    medium = stage.disk(MIBS)
    # Its reads take 50 ms each, so that there is time to do harm before the last one.
    target = stage.dm(f"0 {MIBS * MIB // 512} delay {medium} 0 50 {medium} 0 0")
    harmed: list[float] = []

    def harm(event: harness.Event) -> None:
        # The origin has its table back: the copy is durable, and verify comes next.
        harness.write_device(medium, bytes(512), 7 * MIB)
        harmed.append(event["seconds"])

    with open(path, "rb"):
        copied = run_copy(
            stage.folder, path, f"block:{target}", "--verify", "--segment", "256k",
            witness=False, at={"hold:end": harm},
        )  # fmt: skip
    assert harmed
    assert copied.status == 1, copied.events[-1]
    assert copied.ended["kind"] == "verify"
    assert copied.ended["verified"] is False
    assert "not what was copied" in copied.stderr


def test_digest_none_gives_none_and_does_not_go_with_verify(stage: Stage) -> None:
    path = origin(stage)
    image = harness.image_of(stage.folder)
    with open(path, "rb"):
        copied = run_copy(stage.folder, path, f"image:{image}", "--digest", "none")
        assert_copied(copied, Path(image).read_bytes())
        assert copied.ended["digest"] is None
        other = run_copy(
            stage.folder, path, f"image:{image}2", "--digest", "none", "--verify", witness=False
        )
    assert other.status == 2
    assert not os.path.exists(f"{image}2")


# the COW device


@pytest.mark.parametrize("kind", ["auto", "size", "file", "device"])
def test_cow_device_of_each_kind_is_used_and_gone_afterwards(stage: Stage, kind: str) -> None:
    path = origin(stage)
    file = f"{stage.folder}/here.cow"
    cow = {"auto": "auto", "size": "16m", "file": f"{file}:16m", "device": ""}[kind]
    if kind == "device":
        cow = stage.disk(16)
    loops = sh("losetup", "--noheadings", "--output", "NAME")
    image = harness.image_of(stage.folder)
    with harness.fio(path, path):
        copied = run_copy(stage.folder, path, f"image:{image}", "--cow", cow)
    assert_copied(copied, Path(image).read_bytes())
    assert copied.ended["cow_used_bytes"] > 0
    assert sh("losetup", "--noheadings", "--output", "NAME") == loops
    assert not os.path.exists(file)
    assert not list(Path(stage.folder).rglob("*.cow"))


def test_cow_file_on_the_device_that_is_copied_is_refused(stage: Stage) -> None:
    path = stage.linear(stage.disk(32))
    mount = stage.filesystem(path)
    table = harness.table_text(path)
    image = harness.image_of(stage.folder)
    copied = run_copy(
        stage.folder, path, f"image:{image}", "--cow", f"{mount}/cow:8m", witness=False
    )
    assert copied.status == 3, copied.stderr
    assert "would lie on the device that is being copied" in copied.stderr
    assert harness.table_text(path) == table
    assert not os.path.exists(f"{mount}/cow")
    assert not os.path.exists(image)


def test_plan_can_be_pasted_and_changes_nothing(stage: Stage) -> None:
    path = origin(stage)
    before = sh("dmsetup", "table")
    with open(path, "rb"):
        done = subprocess.run(
            ["python3", "-m", "dmcopy", "plan", path, f"{stage.folder}/image"],
            env=os.environ | {"DMCOPY_STATE_DIR": stage.folder, "DMCOPY_RUN_DIR": stage.folder},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "snapshot-origin" in done.stdout
    assert sh("dmsetup", "table") == before
    assert not os.path.exists(f"{stage.folder}/image")
