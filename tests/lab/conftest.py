"""What every lab test gets: a guest, devices of its own, and a look at what it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from lab import residue

_PATIENCE: Final = 5.0  # seconds in which udev may still hold a device
_DISKS: Final = 6
_DISK_SIZE: Final = 64 << 20  # of one of `ramdisk`'s


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail, and do not skip, outside of a guest: a test that did not run proves nothing."""
    here = Path(__file__).parent
    if any(here in item.path.parents for item in items) and "LAB_GUEST" not in os.environ:
        raise pytest.UsageError(
            "tests/lab need a guest: python -m lab run -- python -m pytest tests/lab"
        )


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = residue.census()
    yield
    if left := residue.left_behind(before, patience=_PATIENCE):
        resists = residue.clean(before)
        said = "\n  ".join(["the test left behind:", *left])
        if resists:
            said = "\n  ".join([said, "and this could not be removed:", *resists])
        pytest.fail(said, pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what all the torture came to, where there was some."""
    torture = sys.modules.get("tests.lab.torture")
    if torture is not None and torture.TALLY.images:
        terminalreporter.write_line(str(torture.TALLY))


def _run(*argv: str) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}: {done.stderr}"
    return done.stdout


def _patiently(*argv: str) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            _run(*argv)
        except AssertionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="session")
def _ramdisks() -> list[str]:
    # brd may be there already, with other sizes; an unused one goes without complaint.
    subprocess.run(["modprobe", "--remove", "brd"], check=False, capture_output=True)
    _run("modprobe", "brd", f"rd_nr={_DISKS}", f"rd_size={_DISK_SIZE >> 10}")
    return [f"/dev/ram{number}" for number in range(_DISKS)]


@pytest.fixture
def ramdisk(_ramdisks: list[str]) -> Iterator[Callable[[], str]]:
    """Give a function that gives an empty 64 MiB disk in memory, another one each time."""
    free = list(_ramdisks)
    taken: list[str] = []

    def take() -> str:
        taken.append(free.pop(0))
        return taken[-1]

    yield take
    for path in taken:
        _patiently("wipefs", "--all", "--force", "--quiet", path)
        _run("blkdiscard", "--zeroout", path)


@pytest.fixture
def linear() -> Iterator[Callable[[str, str], str]]:
    """Give a function (name, device) that lays a linear dm device over a whole device."""
    with ExitStack() as stack:

        def create(name: str, device: str) -> str:
            sectors = _run("blockdev", "--getsz", device).strip()
            _run("dmsetup", "create", name, "--table", f"0 {sectors} linear {device} 0")
            stack.callback(_patiently, "dmsetup", "remove", "--", name)
            return f"/dev/mapper/{name}"

        yield create
