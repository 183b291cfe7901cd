"""What the kernel writes of an exception store without a flush is flushed before we rely on it."""

from __future__ import annotations

import os

import pytest

from dmcopy.core.exception_store import Header
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.begin import splice
from dmcopy.stack.cow import CowSpec
from dmcopy.stack.cow_plan import plan_cow
from dmcopy.stack.discover import discover
from dmcopy.units import Bytes, Sectors, to_sectors
from tests.cuts.logwrites import Replay
from tests.lab.harness import host_in, sectors_of
from tests.lab.scene import scene
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

CHUNK = to_sectors(Bytes(16 << 10))


def test_store_is_durable_when_the_job_has_begun() -> None:
    """The COW device loses its cache, before anything was saved on it."""
    with scene("durable") as at:
        origin, disk, log = at.origin(8), at.stage.disk(16), at.stage.disk(64)
        sh("modprobe", "dm-log-writes")
        cow = at.stage.dm(f"0 {sectors_of(disk)} log-writes {disk} {log}")
        host = host_in(str(at.folder))
        assert host.dm is not None
        source = discover(origin, host.dm, host.sysfs, want_splice=True)
        lvm = Lvm(host.run)
        plan = plan_cow(
            CowSpec(devices=(cow,)), job="dur", source=source.devno, length=source.length,
            chunk=CHUNK, directory=host.places.cow_files, sysfs=host.sysfs, lvm=lvm,
        )  # fmt: skip
        spliced = splice(
            host.dm, host.sysfs, job="dur", source=source, cow=plan, chunk=CHUNK,
            hold_limit=10.0, lvm=lvm,
        )  # fmt: skip
        spliced.plan.run(lambda what: None)
        try:
            sh("dmsetup", "message", os.path.basename(cow), "0", "mark", "begun")
            assert durable_header(log) == Header(valid=True, version=1, chunk_size=Sectors(CHUNK))
        finally:
            spliced.plan.undo()


def durable_header(log: str) -> Header:
    """Give the header as it is without what no flush made durable."""
    sh("blockdev", "--flushbufs", log)  # udev may have read it before it was written to
    entries, image = os.open(log, os.O_RDONLY), os.memfd_create("image")
    try:
        replay = Replay(entries, image)
        replay.to(len(replay.entries), lambda _: False)
        return Header.parse(os.pread(image, 512, 0))
    finally:
        os.close(entries)
        os.close(image)
