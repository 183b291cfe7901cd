"""Helpers come from the package as it was when the job began, whatever becomes of it since."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dmcopy
from dmcopy.kernel import own_code

_HERE = Path(dmcopy.__file__).parent


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a package of our own, installed somewhere, that runs; it may be spoilt."""
    package = tmp_path / "installed" / "dmcopy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A package."""\n')
    shutil.copy(_HERE / "helper.py", package)
    (package / "sub").mkdir()
    (package / "sub" / "__init__.py").touch()
    (package / "sub" / "part.py").write_text(
        "import sys, dmcopy\nfrom dmcopy.sub import other\nprint(dmcopy.__file__, *sys.argv[1:])\n"
    )
    (package / "sub" / "other.py").touch()
    monkeypatch.setattr(own_code, "_PACKAGE", package)
    return package


def said(*words: str, cwd: Path | None = None) -> list[str]:
    # which may name the current directory
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, cwd=cwd, env=environment
    )
    return done.stdout.split()


def upgrade(package: Path) -> None:
    """Put another file in the place of one, as dpkg and pip do."""
    new = package / "sub" / "other.py.new"
    new.write_text("raise SystemExit('of another version')\n")
    new.rename(package / "sub" / "other.py")


def test_helper_is_of_this_very_package_and_of_no_current_directory(tmp_path: Path) -> None:
    (tmp_path / "dmcopy").mkdir()
    (tmp_path / "dmcopy" / "__init__.py").write_text("raise SystemExit('a trap')\n")
    (tmp_path / "json.py").write_text("raise SystemExit('a trap')\n")
    argv = own_code.helper("dmcopy", "--version")
    assert argv[0] == sys.executable
    assert said(*argv, cwd=tmp_path) == ["dmcopy", dmcopy.__version__]


def test_upgrade_in_mid_copy_does_not_reach_the_helpers_of_a_job(
    installed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "code"
    with own_code.kept(folder):
        upgrade(installed)
        (where, *words) = said(*own_code.helper("dmcopy.sub.part", "a", "b"))
        assert Path(where).is_relative_to(folder)
        assert words == ["a", "b"]
    with pytest.raises(subprocess.CalledProcessError):
        said(*own_code.helper("dmcopy.sub.part"))


def test_removed_package_does_not_reach_the_helpers_of_a_job(
    installed: Path, tmp_path: Path
) -> None:
    with own_code.kept(tmp_path / "code"):
        shutil.rmtree(installed)
        assert said(*own_code.helper("dmcopy.sub.part", "a"))[1:] == ["a"]


def test_copies_are_one_a_version_and_go_when_nobody_uses_them(
    installed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "code"
    with own_code.kept(folder):
        (first,) = folder.iterdir()
        with own_code.kept(folder):
            assert list(folder.iterdir()) == [first]
        upgrade(installed)
        with own_code.kept(folder):
            assert len(list(folder.iterdir())) == 2, "a job runs on the first"
    with own_code.kept(folder):
        assert first not in folder.iterdir()


def test_same_contents_put_anew_are_another_state(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    with own_code.kept(folder):
        copy = installed / "copy"
        shutil.copy2(installed / "sub" / "part.py", copy)
        copy.rename(installed / "sub" / "part.py")
        with own_code.kept(folder):
            assert len(list(folder.iterdir())) == 2


def test_copy_that_another_process_uses_is_not_removed(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    with own_code.kept(folder):
        (first,) = folder.iterdir()
    program = f"import fcntl, os; fcntl.flock(os.open({str(first)!r}, 0), fcntl.LOCK_SH); "
    program += "print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    upgrade(installed)
    with own_code.kept(folder):
        assert first in folder.iterdir()
    holder.communicate(b"\n")
    with own_code.kept(folder):
        assert first not in folder.iterdir()


def test_leftovers_of_one_that_was_killed_are_removed(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    for name in (f".new-{os.getpid()}", ".new-1"):
        (folder / name / "dmcopy").mkdir(parents=True)
    with own_code.kept(folder):
        (only,) = folder.iterdir()
        assert only.name.startswith(dmcopy.__version__)


def test_without_room_for_a_copy_it_is_what_is_installed(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with own_code.kept(tmp_path / "file" / "code"):
        assert own_code.helper("dmcopy.sub.part")[2] == str(installed / "helper.py")


def test_copy_that_an_administrator_removed_is_not_missed(installed: Path, tmp_path: Path) -> None:
    with own_code.kept(tmp_path / "code"):
        shutil.rmtree(tmp_path / "code")
        assert own_code.helper("dmcopy.sub.part")[2] == str(installed / "helper.py")


def test_nobody_else_may_look_or_write(installed: Path, tmp_path: Path) -> None:
    with own_code.kept(tmp_path / "code"):
        (copy,) = (tmp_path / "code").iterdir()
        assert copy.stat().st_mode & 0o077 == 0
        assert (tmp_path / "code").stat().st_mode & 0o077 == 0


def test_lock_is_let_go_at_the_end(installed: Path, tmp_path: Path) -> None:
    with own_code.kept(tmp_path / "code"):
        (copy,) = (tmp_path / "code").iterdir()
    fd = os.open(copy, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
