"""What a split needs, and how an array is brought back, with arrays that are files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.errors import CommandFailed, Refused
from dmcopy.kernel import md_member
from dmcopy.kernel.command import Commander, Completed
from dmcopy.kernel.mdadm import Mdadm
from dmcopy.stack.md_split import splittable
from dmcopy.stack.md_split_back import (
    SplitRecord,
    put_back,
    read_record,
    split_jobs,
    write_record,
)
from dmcopy.units import Sectors
from tests.unit.kernel.tree import Tree

MD = "9:0"
UUID = "10dd8811-2851-d89c-a13a-b3e18d343b38"


class Array:
    """A RAID1 in a tree, and an mdadm that does to the tree what the real one does."""

    def __init__(self, base: Path) -> None:
        self.tree = Tree(base)
        self.asked: list[str] = []
        self.busy = 0
        self.tree.disk("md0", MD)
        for name, text in {
            "array_state": "clean", "level": "raid1", "raid_disks": "2", "degraded": "0",
            "sync_action": "idle", "uuid": UUID, "metadata_version": "1.2",
        }.items():  # fmt: skip
            self.tree.write(MD, f"md/{name}", text)
        for number in range(3):
            devno = self.tree.disk(f"sd{'abc'[number]}", f"8:{number}")
            self.member(devno, slot=str(number) if number < 2 else "none")
        self.mdadm = Mdadm(Commander(self.launch))

    def folder(self, devno: str) -> Path:
        name = self.tree.sysfs().kname(devno)
        return self.tree.sys / "dev/block" / MD / "md" / f"dev-{name}"

    def member(self, devno: str, *, slot: str, state: str = "") -> None:
        name = self.tree.sysfs().kname(devno)
        state = state or ("spare" if slot == "none" else "in_sync")
        for file, text in {
            "state": state, "slot": slot, "offset": "2048", "size": "512", "block/dev": devno,
        }.items():  # fmt: skip
            self.tree.write(MD, f"md/dev-{name}/{file}", text)

    def launch(self, argv: object, stdin: object, timeout: float) -> Completed:
        assert isinstance(argv, tuple)
        words = [str(word) for word in argv]
        if "--export" in words:
            return Completed(argv, 0, "MD_LEVEL=raid1\nMD_UUID=1:2:3:4\n", "", 0.0)
        if self.busy:
            self.busy -= 1
            return Completed(argv, 1, "", "mdadm: failed to grow: resource busy", 0.0)
        self.asked.append(" ".join(words[1:]))
        if "--remove" in words:
            folder = self.folder("8:2")
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()
        elif "--add-spare" in words:
            self.member("8:2", slot="none")
        else:
            self.tree.write(MD, "md/raid_disks", words[-1].partition("=")[2])
        return Completed(argv, 0, "", "", 0.0)

    def split(self) -> None:
        splittable("/dev/md0", MD, self.tree.sysfs(), Sectors(1024))

    def record(self, path: Path) -> Path:
        spare = self.tree.sysfs().identity("8:2")
        write_record(
            path, SplitRecord(uuid=UUID, devno=MD, name="md0", disks=2, spare=spare, mounts=())
        )
        return path

    def back(self, path: Path) -> tuple[list[str], list[str]]:
        return put_back(path, self.tree.sysfs(), self.mdadm)


def fail(fd: int) -> None:
    """Do what md does: what is written takes the place of the words that were there."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, md_member.FAULTY.encode(), 0)


@pytest.fixture
def array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Array:
    monkeypatch.setattr(md_member, "fail", fail)
    return Array(tmp_path)


def test_mirror_with_a_spare_can_be_split(array: Array) -> None:
    array.split()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("level", "raid10", "is a raid10"),
        ("degraded", "1", "is degraded"),
        ("metadata_version", "external:/md127/0", "firmware"),
        ("sync_action", "frozen", "has frozen"),
        ("dev-sdc/slot", "2", "has no spare"),
        ("dev-sdb/slot", "none", "has 2 spares"),
    ],
)
def test_others_cannot(array: Array, name: str, text: str, why: str) -> None:
    array.tree.write(MD, f"md/{name}", text)
    with pytest.raises(Refused, match=why):
        array.split()


def test_record_is_read_as_it_was_written(array: Array, tmp_path: Path) -> None:
    path = array.record(tmp_path / "splits/job")
    found = read_record(path)
    assert found is not None
    assert (found.uuid, found.disks, found.spare["kname"], found.mounts) == (UUID, 2, "sdc", ())
    assert split_jobs(path.parent) == ["job"]
    assert split_jobs(tmp_path / "none") == []
    assert read_record(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("disks", "slot", "state", "asked"),
    [
        ("2", "none", "spare", []),
        ("3", "2", "in_sync", ["--remove", "--grow", "--add-spare"]),
        ("3", "2", "spare", ["--remove", "--grow", "--add-spare"]),  # it was being built
        ("3", "none", "faulty", ["--remove", "--grow", "--add-spare"]),
        ("2", "none", "faulty", ["--remove", "--add-spare"]),
        ("2", "1", "in_sync", []),  # it has taken a failed member's place
    ],
)
def test_array_is_brought_back_from_wherever_it_is(
    array: Array, tmp_path: Path, *, disks: str, slot: str, state: str, asked: list[str]
) -> None:
    path = array.record(tmp_path / "splits/job")
    array.tree.write(MD, "md/raid_disks", disks)
    array.member("8:2", slot=slot, state=state)
    done, left = array.back(path)
    assert left == []
    words = [word for line in array.asked for word in line.split() if word.startswith("--")]
    assert [word for word in words if word != "--manage" and "=" not in word] == asked
    assert bool(done) == bool(asked)
    assert not path.exists()
    assert array.back(path) == ([], []), "again is harmless"


def test_busy_array_is_asked_again(array: Array, tmp_path: Path) -> None:
    path = array.record(tmp_path / "splits/job")
    array.tree.write(MD, "md/raid_disks", "3")
    array.member("8:2", slot="none", state="faulty")
    array.busy = 2
    assert array.back(path)[1] == []


def test_what_cannot_be_done_is_left_with_its_record(array: Array, tmp_path: Path) -> None:
    path = array.record(tmp_path / "splits/job")
    array.tree.write(MD, "md/uuid", "another")
    _, left = array.back(path)
    assert "is not assembled" in left[0]
    assert path.exists()


def test_array_that_somebody_made_larger_is_left_alone(array: Array, tmp_path: Path) -> None:
    path = array.record(tmp_path / "splits/job")
    array.tree.write(MD, "md/raid_disks", "4")
    _, left = array.back(path)
    assert "it has 4 members now, and had 2" in left[0]
    assert array.asked == []


def test_record_that_is_not_whole_is_said(array: Array, tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.write_text("{")
    _, left = array.back(path)
    assert "cannot be read" in left[0]


def test_mdadm_that_fails_is_an_error() -> None:
    def launch(argv: object, stdin: object, timeout: float) -> Completed:
        return Completed(("mdadm",), 2, "", "mdadm: no such array", 0.0)

    with pytest.raises(CommandFailed, match="no such array"):
        Mdadm(Commander(launch)).grow("/dev/md0", 3)
