"""The command line as the README shows it, on a host with udev and systemd, under a load.

The witness is the load's own log: each block of the copy says which write it is of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab import harness, stamp
from tests.lab.scene import Scene, scene
from tests.lab.stage import sh
from tests.systemd.plugging import MIB, Adapter, commands, dmcopy

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

SEED: Final = 21


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("readme") as made:
        yield made


def test_command_line_as_the_readme_has_it(at: Scene, adapter: Adapter) -> None:
    source = at.origin(MIB)
    table = sh("dmsetup", "table", source)
    name, _ = adapter.plug()
    link = f"/dev/disk/by-id/wwn-0x{adapter.wwn(name).removeprefix('naa.')}"
    sh("udevadm", "settle", "--timeout=60")
    assert Path(link).resolve() == Path(f"/dev/{name}")
    names = {
        "/dev/mapper/data": (source, 2),
        "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4": (link, 2),
    }
    script = commands("README.rst", "\nBy the command line\n", names)
    log = at.folder / "log"
    with harness.stamping(source, log, seed=SEED):
        said = sh("sh", "-e", stdin=script)
    assert "nightly" in said
    (job,) = dmcopy("show", "nightly")
    assert (job["state"], job["ended"]["exit_status"]) == ("ended", 0)
    assert job["ended"]["verified"]
    t0 = harness.nanoseconds(job["begun"]["begin_time"])
    t1 = t0 + round(job["begun"]["hold_seconds"][0] * 1e9)
    verdict = stamp.check(f"/dev/{name}", log, SEED, t0=t0, t1=t1)
    assert verdict.is_good, verdict.wrong
    assert verdict.writes > 0
    assert sh("dmsetup", "table", source) == table
