"""Machines for the power cut tests, which run on the host and boot their guests themselves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuts.machine import TALLY, Machine, Media


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """Give a place in memory: a disk that is a file on a real disk would be slow to no purpose.

    By this name the lab's next run removes it, should this process be killed.
    """
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=f"dmcopy-lab-{os.getpid()}-cuts-", dir=base))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def media(place: Path) -> Media:
    """Give the disks as they are before anything happens."""
    folder = place / "media"
    folder.mkdir()
    return Media(folder)


@pytest.fixture
def folder(place: Path) -> Iterator[Path]:
    """Give a place for one test's disks."""
    path = Path(tempfile.mkdtemp(dir=place))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def machine(folder: Path, media: Media) -> Machine:
    """Give a machine that never ran."""
    return Machine(folder, media.all)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what all the cuts came to."""
    terminalreporter.write_line(str(TALLY))
