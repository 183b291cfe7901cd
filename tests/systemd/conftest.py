"""What every test under a real systemd gets: dmcopy installed as ``dmcopy setup`` does it.

python -m lab run --systemd -- python -m pytest tests/systemd
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import residue
from lab.guest import CHECKOUT, venv
from tests.lab.stage import sh
from tests.systemd.plugging import Adapter

_PATIENCE = 10.0  # seconds in which udev and systemd may still hold something


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail, and do not skip, without systemd: a test that did not run proves nothing."""
    here = Path(__file__).parent
    ours = any(here in item.path.parents for item in items)
    if (
        ours
        and os.environ.get("LAB_GUEST") != "collect"
        and not Path("/run/systemd/system").is_dir()
    ):
        raise pytest.UsageError("tests/systemd need: python -m lab run --systemd -- ...")


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    """Install rules, units and the program; the guest's root is in memory."""
    for part, where in (("rules.d", "/etc/udev/rules.d"), ("systemd", "/etc/systemd/system")):
        for path in (CHECKOUT / "udev" / part).iterdir():
            shutil.copy(path, Path(where) / path.name)
    program = Path("/usr/local/sbin/dmcopy")
    environment = f"PYTHONPATH={CHECKOUT} PYTHONDONTWRITEBYTECODE=1"
    program.write_text(f'#!/bin/sh\nexec env {environment} {venv()}/bin/python -m dmcopy "$@"\n')
    program.chmod(0o755)
    for folder in (
        "/etc/dmcopy/policies.d",
        "/etc/dmcopy/hooks.d",
        "/var/lib/dmcopy",
        "/run/dmcopy",
    ):
        os.makedirs(folder, exist_ok=True)
    sh("systemctl", "daemon-reload")
    sh("udevadm", "control", "--reload")


@pytest.fixture(autouse=True)
def _nothing_left(_installed: None) -> Iterator[None]:
    before = residue.census()
    yield
    for folder in ("/run/dmcopy", "/var/lib/dmcopy", "/etc/dmcopy/policies.d"):
        for path in Path(folder).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if left := residue.left_behind(before, patience=_PATIENCE):
        resists = residue.clean(before)
        said = "\n  ".join(["the test left behind:", *left])
        if resists:
            said = "\n  ".join([said, "and this could not be removed:", *resists])
        pytest.fail(said, pytrace=False)


@pytest.fixture
def adapter() -> Iterator[Adapter]:
    """Give a disk that can be plugged in, in many slots."""
    made = Adapter()
    yield made
    made.close()
