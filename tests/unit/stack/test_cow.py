"""What the COW device is made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.errors import Refused, UsageError
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import CowFileOnHost, CowPlan, CowSpec, plan_cow
from dmcopy.units import MIB, Bytes, Sectors, to_bytes

CHUNK = Sectors(128)
LENGTH = Sectors(64 * MIB // 512)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("auto", CowSpec()),
        ("20m", CowSpec(size=Bytes(20 * MIB))),
        ("/var/tmp/x:1g", CowSpec(file="/var/tmp/x", size=Bytes(1 << 30))),
        ("./x:y:4k", CowSpec(file="./x:y", size=Bytes(4096))),
        ("/dev/vg0/spare", CowSpec(device="/dev/vg0/spare")),
        ("/dev/disk/by-path/pci-0:1", CowSpec(device="/dev/disk/by-path/pci-0:1")),
    ],
)
def test_cow_argument_is_understood(text: str, spec: CowSpec) -> None:
    assert CowSpec.parse(text) == spec


@pytest.mark.parametrize("text", ["", "x", "/var/tmp/x", "x:1g", "1q", "/var/tmp/x:", "-1g"])
def test_cow_argument_that_makes_no_sense_says_what_does(text: str) -> None:
    with pytest.raises(UsageError, match="say auto"):
        CowSpec.parse(text)


def _plan(spec: CowSpec, folder: Path, *, length: Sectors = LENGTH) -> CowPlan:
    return plan_cow(
        spec,
        job="j",
        source="254:9",
        length=length,
        chunk=CHUNK,
        directory=folder / "cow",
        sysfs=Sysfs(),
    )


def test_auto_is_as_large_as_could_ever_be_needed(tmp_path: Path) -> None:
    plan = _plan(CowSpec(), tmp_path)
    assert isinstance(plan, CowFileOnHost)
    assert plan.path == tmp_path / "cow" / "dmcopy-j.cow"
    assert to_bytes(LENGTH) < plan.size < to_bytes(LENGTH) * 1.01
    assert plan.size % to_bytes(CHUNK) == 0
    assert not plan.path.parent.exists()


def test_auto_takes_at_most_half_of_what_is_free(tmp_path: Path) -> None:
    plan = _plan(CowSpec(), tmp_path, length=Sectors(1 << 40))
    assert isinstance(plan, CowFileOnHost)
    stat = os.statvfs(tmp_path)
    assert plan.size <= stat.f_bavail * stat.f_frsize * 0.6


def test_file_that_exists_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("precious")
    with pytest.raises(Refused, match="exists"):
        _plan(CowSpec.parse(f"{tmp_path}/x:10m"), tmp_path)


@pytest.mark.parametrize(("size", "said"), [("4k", "too small"), ("900t", "no room")])
def test_size_that_cannot_work_is_refused(tmp_path: Path, size: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        _plan(CowSpec.parse(size), tmp_path)


def test_missing_device_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="/dev/no-such"):
        _plan(CowSpec.parse("/dev/no-such"), tmp_path)
