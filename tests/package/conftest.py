"""What the tests of an installed dmcopy get: a machine with systemd that has none.

    make deb
    python -m lab run --systemd -- python -m pytest tests/package

What is installed is installed into the guest's root, which is in memory; it is run with Debian's
Python and libraries, and sees neither the checkout nor the virtual environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import deb, residue

_PATIENCE = 10.0  # seconds in which udev and systemd may still hold something
# where anything of dmcopy could be, and how deep
_PLACES = {
    "/etc": 5, "/run": 2, "/var/lib": 3, "/lib/systemd": 4, "/lib/udev": 2, "/usr/lib/python3": 2,
    "/usr/lib/tmpfiles.d": 1, "/usr/sbin": 1, "/usr/bin": 1, "/usr/local": 3, "/usr/share/doc": 1,
    "/usr/share/man/man8": 1, "/usr/share/bash-completion": 2, "/usr/share/zsh": 2, "/opt": 1,
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail, and do not skip, without systemd: a test that did not run proves nothing."""
    here = Path(__file__).parent
    if any(here in item.path.parents for item in items) and (
        "LAB_GUEST" not in os.environ
        or not (os.environ["LAB_GUEST"] == "collect" or Path("/run/systemd/system").is_dir())
    ):
        raise pytest.UsageError("tests/package need: python -m lab run --systemd -- ...")


class Machine:
    """The guest, as its administrator sees it."""

    def __init__(self) -> None:
        # a container's image may forbid packages to start their services: here they shall
        Path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
        # man-db(8): with each package the index of all pages is made anew, which takes its time
        Path("/var/lib/man-db/auto-update").unlink(missing_ok=True)

    def run(self, *argv: str, status: int = 0, limit: float = 120.0) -> str:
        """Run a program in an administrator's environment; give what it said."""
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=limit, check=False, cwd="/",
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                 "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
        assert done.returncode == status, f"{argv}: {done.returncode}: {done.stdout}"
        return done.stdout.strip()

    def files(self) -> set[str]:
        """Give each file of dmcopy's on the machine."""
        found: set[str] = set()
        for place, depth in _PLACES.items():
            said = self.run("find", place, "-maxdepth", str(depth), "-name", "*dmcopy*")
            found.update(path for path in said.splitlines() if "/lab/" not in path)
        return found

    def units(self) -> set[str]:
        """Give each unit of dmcopy's that systemd knows, with its state."""
        said = self.run(
            "systemctl",
            "list-units",
            "--all",
            "--plain",
            "--no-legend",
            "--type=service,socket,timer",
            "*dmcopy*",
        )
        return set(said.splitlines())


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="session")
def package() -> Path:
    """Give the package, which was built on the host: by `make deb`, or by the suite."""
    return deb.current()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(machine: Machine) -> Iterator[None]:
    before, files = residue.census(), machine.files()
    yield
    assert machine.files() == files
    assert residue.left_behind(before, patience=_PATIENCE) == []
