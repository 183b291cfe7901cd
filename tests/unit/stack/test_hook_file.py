"""Which files are hooks, and which may be run as root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dmcopy.errors import Refused, UsageError
from dmcopy.stack.hook_file import SHIPPED, find_hooks, shipped


def make(folder: Path, name: str, mode: int = 0o755) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_hooks_of_the_directory_come_first_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "hooks.d"
    folder.mkdir(mode=0o755)
    for name in ("b", "a", "c.bak", ".hidden", "d~"):
        make(folder, name)
    make(folder, "plain", 0o644)
    (folder / "sub").mkdir()
    own = make(tmp_path, "own")
    found = find_hooks(folder, [f"{own} 'one word' two"])
    assert found == ((f"{folder}/a",), (f"{folder}/b",), (own, "one word", "two"))
    assert find_hooks(None, []) == find_hooks(tmp_path / "none", []) == ()


def test_hook_is_run_from_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make(tmp_path, "own")
    monkeypatch.chdir(tmp_path)
    assert find_hooks(None, ["./own"]) == ((own,),)


@pytest.mark.parametrize("word", ["", "'", "nosuch", "/no/such/hook", "/tmp", "/etc/passwd"])
def test_what_is_no_program_is_wrong_usage(word: str) -> None:
    with pytest.raises(UsageError):
        find_hooks(None, [word])


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_file_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(Refused, match=r"others than root can write to .*chmod go-w"):
        find_hooks(None, [make(tmp_path, "open", mode)])


def test_file_that_others_can_replace_is_refused_also_behind_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    real = make(folder, "real")
    link = tmp_path / "link"
    link.symlink_to(real)
    assert find_hooks(None, [str(link)])
    folder.chmod(0o777)
    with pytest.raises(Refused, match="shared"):
        find_hooks(None, [str(link)])
    folder.chmod(0o1777)  # as /tmp: none but the owner can replace it
    assert find_hooks(None, [str(link)])


def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make(tmp_path, "own")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if os.stat(own).st_uid == 0:  # the tests run as root
        monkeypatch.setattr("dmcopy.stack.hook_file._ROOT", 54321)
    with pytest.raises(Refused, match="belongs to user"):
        find_hooks(None, [own])


def test_hooks_that_come_with_dmcopy_are_named_by_their_names() -> None:
    assert shipped() == ["mariadb", "postgresql"]


@pytest.mark.forks
@pytest.mark.parametrize("name", ["mariadb", "postgresql"])
def test_hook_that_comes_with_dmcopy_is_a_program_that_knows_its_sides(name: str) -> None:
    path = SHIPPED / name
    assert os.access(path, os.X_OK)
    after = subprocess.run([path, "after"], capture_output=True, check=False)
    assert (after.returncode, after.stdout, after.stderr) == (0, b"", b"")
    wrong = subprocess.run([path, "while"], capture_output=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (1, f"usage: {name} before|after\n".encode())
