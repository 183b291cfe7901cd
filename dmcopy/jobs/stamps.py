"""Keeps on record what the file system on a wrapped source says of who mounted it last.

The kernel's counters tell of every write since the machine was started, and of none before.  A
device that was mounted by another system in between - a rescue system, another host of the SAN -
shows that in its superblock, if it is ext2, ext3 or ext4 (`core.mount_stamp`); what was written
past a file system, or into another kind, cannot be known.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from dmcopy.core.mount_stamp import HEAD, MountStamp
from dmcopy.errors import DmcopyError, PointInTimeLost
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.state import State
from dmcopy.kernel.blkdev import BlockDevice, pread_full
from dmcopy.kernel.dm import WRAPS
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.discover import Source

_KEEP_SECONDS: Final = 5.0  # less than the grace of `MountStamp.stranger`
_GOES_ON: Final = frozenset({State.BEGUN, State.COPYING})


def read_stamp(path: str) -> MountStamp | None:
    """Read the superblock on the device at *path*, past every page cache.

    None where there is none that says something.
    """
    with (
        BlockDevice.open(path) as device,
        mmap.mmap(-1, HEAD) as memory,
        memoryview(memory) as view,
    ):
        if device.size < HEAD:
            return None
        pread_full(device.fd, view, 0)
        return MountStamp.parse(view)


def keep(journal: Journal, job: str, stamp: MountStamp | None, *, seen: float | None) -> None:
    """Put it on record; *seen* is the time, where the job runs and will look again soon."""
    if stamp is not None:
        journal.keep_stamp(job, {"stamp": stamp.as_json(), "seen": seen})


def refuse_stranger(journal: Journal, record: Record, path: str) -> None:
    """Raise `PointInTimeLost` when the superblock on *path* tells of a stranger."""
    kept = journal.stamp(record.name)
    if kept is None:
        return
    # a job that was told to stop left its file system to go on for as long as it liked
    seen = kept["seen"] if record.state in _GOES_ON else None
    why = MountStamp.from_json(kept["stamp"]).stranger(read_stamp(path), seen=seen)
    if why is not None:
        raise PointInTimeLost(
            f"{path} was written while its wrap was not there, when nothing was saved: {why}"
        )


class StampWatch:
    """Keeps the stamp of one job's source while the job runs; `tick` often."""

    def __init__(
        self,
        source: Source,
        sysfs: Sysfs,
        keep: Callable[[MountStamp, float], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """*keep* puts a stamp on record, with the time when it was seen."""
        self._keep = keep
        self._clock = clock
        self._path = _under(source, sysfs)
        self._kept = 0.0

    def tick(self) -> None:
        """Look, if it is time; what cannot be read is not kept."""
        now = self._clock()
        if self._path is None or now - self._kept < _KEEP_SECONDS:
            return
        self._kept = now
        with suppress(OSError, DmcopyError):
            stamp = read_stamp(self._path)
            if stamp is not None:
                self._keep(stamp, now)


def _under(source: Source, sysfs: Sysfs) -> str | None:
    """Give the device under the source's wrap; None where it is no wrap."""
    with suppress(OSError, ValueError):
        if source.table is not None and sysfs.dm_uuid(source.devno).startswith(WRAPS):
            (devno,) = source.table.devices()
            return sysfs.node(devno)
    return None
