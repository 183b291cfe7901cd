"""LUNs of a SAN, and partitions: under the dm device that the application uses, and alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab import harness, luns, stamp
from tests.lab.harness import assert_copied, read_device, run_copy
from tests.lab.scene import Scene, scene

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

MIB = 8


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("luns") as made:
        yield made


@pytest.fixture(params=["scsi_debug", "iscsi", "partition"])
def device(request: pytest.FixtureRequest, at: Scene) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "scsi_debug":
            yield stack.enter_context(luns.scsi_debug(MIB))
        elif request.param == "iscsi":
            yield stack.enter_context(luns.iscsi(at.stage, MIB))
        else:
            yield at.stage.partition(at.stage.disk(16))
        at.stage.close()  # what lies over the LUN goes before it


def test_device_below_a_linear_one_is_copied_under_load(at: Scene, device: str) -> None:
    path = at.origin(under=device)
    stamp.fill(path, seed=3, processes=2)
    table = harness.table_text(path)
    target, log = at.stage.disk(MIB), at.folder / "log"
    with harness.stamping(path, log, seed=3):
        copied = run_copy(
            str(at.folder), path, target, "--verify", "--segment", "256k", "--batch", "1m"
        )
    verdict = stamp.check(target, log, 3, t0=copied.t0, t1=copied.t1)
    assert verdict.wrong == []
    assert_copied(copied, read_device(target))
    assert harness.table_text(path) == table


def test_device_that_nobody_uses_is_claimed_and_in_use_refused(at: Scene, device: str) -> None:
    harness.write_device(device, harness.pattern(harness.sectors_of(device) * 512))
    before = harness.read_device(device)
    target = at.stage.disk(MIB)
    ran = at.fork("copy", device, target, "--verify", "--json")
    assert ran.status == 0, ran
    assert ran.event("planned")["provider"] == "idle"
    assert read_device(target) == before
    at.hold_open(device)
    ran = at.fork("copy", device, target)
    assert ran.status == 3
    assert f"{device} is in use" in ran.said
