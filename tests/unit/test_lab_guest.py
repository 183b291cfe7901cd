"""The lab's own words: sizes, scripts, and what is believed of a guest that ended."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab import qemu
from lab.guest import (
    NO_STATUS,
    Disk,
    LabError,
    environment,
    parse_size,
    read_status,
    run,
    script,
)
from lab.install import installed
from lab.residue import process


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("512M", 512 << 20), ("4GiB", 4 << 30), ("1t", 1 << 40)]
)
def test_size_is_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "12Q"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="is not a size"):
        parse_size(text)


def test_disk_is_an_existing_file_or_a_size(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.touch()
    assert Disk.parse(str(file)) == Disk(path=file)
    assert Disk.parse("1M") == Disk(size=1 << 20)
    with pytest.raises(LabError, match="does not exist"):
        Disk.parse(str(tmp_path / "other"))


def test_command_gets_its_words_its_directory_and_only_its_environment(tmp_path: Path) -> None:
    odd = tmp_path / "it's a place"
    odd.mkdir()
    text = script(["sh", "-c", 'echo "$0" "$A"; pwd; env'], {"A": "b'c d", "PATH": "/bin"}, odd)
    done = subprocess.run(
        ["/bin/sh", "-c", text], env={"B": "1", "PATH": "/bin:/usr/bin"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "sh b'c d"
    assert lines[1] == str(odd)
    assert not any(line.startswith("B=") for line in lines)


def test_libdevmapper_makes_nodes_by_itself_only_without_udev(tmp_path: Path) -> None:
    assert "DM_DISABLE_UDEV" not in environment("uml", [], tmp_path, udev=True)
    assert environment("uml", [], tmp_path, udev=False)["DM_DISABLE_UDEV"] == "1"


def test_status_comes_back(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("7\n")
    assert read_status(tmp_path, tmp_path / "console") == (7, "")


def test_guest_without_a_status_is_no_pass(tmp_path: Path) -> None:
    assert read_status(tmp_path, tmp_path / "console")[0] == NO_STATUS


@pytest.mark.parametrize("text", ["", "0 0", "-1", "zero", "256"])
def test_status_that_is_none_is_no_pass(tmp_path: Path, text: str) -> None:
    (tmp_path / "status").write_text(text)
    assert read_status(tmp_path, tmp_path / "console")[0] == NO_STATUS


def test_panic_is_no_pass_even_after_a_status(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("0\n")
    console = tmp_path / "console"
    console.write_text("[    9.9] Kernel panic - not syncing: Attempted to kill init!\n")
    status, why = read_status(tmp_path, console)
    assert status == NO_STATUS
    assert "Attempted to kill init" in why


def test_power_of_this_very_machine_is_not_cut() -> None:
    with pytest.raises(LabError, match="engine host has no power to cut"):
        run(["true"], engine="host", cut=lambda: True)


def test_only_modules_for_ordinary_kvm_are_trusted(tmp_path: Path) -> None:
    (tmp_path / "kvm").mkdir()
    assert not qemu.has_kvm(tmp_path)
    (tmp_path / "kvm_amd").mkdir()
    assert qemu.has_kvm(tmp_path)


def test_package_that_was_removed_is_not_installed() -> None:
    text = "install ok installed lvm2\ndeinstall ok config-files mdadm\n"
    assert installed(text) == {"lvm2"}


@pytest.mark.parametrize(
    ("stat", "said"),
    [
        ("31 (fio) S 1 31 31 0 -1 4194304 90 0", "31 fio"),
        ("32 (a) b (c) R 1 31 31 0 -1 4194304 90 0", "32 a) b (c"),
        ("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0", ""),
        ("33 (fio) Z 1 31 31 0 -1 4227084 90 0", ""),
    ],
)
def test_residue_counts_programs_only(stat: str, said: str) -> None:
    assert process(stat) == said
