"""The kernel's count of an origin's writes: what ``--rate auto`` goes by."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest

from dmcopy.kernel.diskstat import IoTimes
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import KIB, MIB
from tests.lab.snapshots import begun, devno, origin_on

pytestmark = pytest.mark.lab

CHUNK = 64 * KIB
DELAY_MS = 40  # of the COW device; each exception waits for at least its data and its commit


def written(path: str, chunks: range) -> IoTimes:
    """Write the first 4 KiB of each chunk, one after the other; give what was counted."""
    sysfs, data = Sysfs(), mmap.mmap(-1, 4 * KIB)
    before = sysfs.io_times(devno(path))
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    for chunk in chunks:
        os.pwritev(fd, [data], chunk * CHUNK)
    os.close(fd)
    return sysfs.io_times(devno(path)).since(before)


def test_time_that_a_copy_on_write_holds_a_write_is_counted_and_only_once_a_chunk(
    ramdisk: Callable[[], str],
) -> None:
    disks = [ramdisk(), ramdisk()]
    with (
        origin_on(
            disks, 8 * MIB, chunk=CHUNK, cow_length=16 * MIB, cow_delay_ms=DELAY_MS
        ) as origin,
        begun(origin),
    ):
        first, again = (written(origin.path, range(20)) for _ in range(2))
    assert (first.writes, first.sectors) == (20, 20 * 8)
    assert (again.writes, again.sectors) == (20, 20 * 8)
    assert first.milliseconds >= 20 * DELAY_MS
    assert again.milliseconds < 20 * DELAY_MS / 4
