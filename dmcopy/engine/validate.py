"""Is the point in time still there?  Asked after each segment was read, before it is used.

Not for finding out why it was lost: the kernel's own words are handed on.

Kernel: drivers/md/dm-snap.c (snapshot_status, __invalidate_snapshot), KERNEL.md 2 and 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from dmcopy.errors import DmFailed, PointInTimeLost
from dmcopy.units import Sectors

# "START LENGTH snapshot USED/TOTAL METADATA", and nothing else: not "Invalid", not "Overflow"
_STATUS: Final = re.compile(rb"0 (\d+) snapshot (\d+)/(\d+) (\d+)")


class Probe(Protocol):
    """Asks device-mapper about one device; never waits for I/O (kernel.dmioctl.Probe)."""

    def status(self) -> bytes:
        """Give the lines of ``dmsetup status``."""

    def table(self) -> bytes:
        """Give the lines of ``dmsetup table`` of the live table."""


class Validator(Protocol):
    """Says whether what was read is the image of begin time."""

    @property
    def cow(self) -> tuple[Sectors, Sectors] | None:
        """How much of the COW device is used, and its size; None where there is none."""

    def check(self) -> None:
        """Raise `PointInTimeLost` unless everything read so far is good."""

    def finish(self) -> None:
        """Look a last time, when everything was read and is durable."""


class SnapshotValidator:
    """The snapshot is valid, and the origin's writes still go through it."""

    def __init__(self, snapshot: Probe, origin: Probe, expected_origin_table: bytes) -> None:
        """*expected_origin_table* is what ``dmsetup table`` says of the spliced origin."""
        self._snapshot = snapshot
        self._origin = origin
        self._expected = _words(expected_origin_table)
        self._expected_raw = expected_origin_table.strip()
        self.cow: tuple[Sectors, Sectors] | None = None

    def check(self) -> None:
        """Ask the kernel about both, the snapshot first."""
        self.check_snapshot()
        self.check_origin()

    def finish(self) -> None:
        """Nothing: a snapshot that is lost after the last check takes nothing with it."""

    def check_snapshot(self) -> None:
        """Raise `PointInTimeLost` unless the snapshot says ``used/total metadata``.

        The kernel marks a snapshot invalid before it releases the first write that was not
        saved (dm-snap.c:__invalidate_snapshot, under the snapshot's lock; the held bios are
        issued after it).  So a status that is good *after* the read says that every write
        the read could have met was saved.
        Proof: test_overflow_under_load_never_gives_a_wrong_segment, and
        test_status_never_asked_broken_gives_wrong_segments.
        """
        # The header's valid flag is not asked: it stays 1 when the COW device fails writes.
        said = _ask("snapshot", self._snapshot.status)
        match = _STATUS.fullmatch(said.strip())
        if match is None:
            raise PointInTimeLost(
                f"the snapshot is no longer valid: the kernel says '{_shown(said)}', because "
                "the COW device is full or failed"
            )
        self.cow = Sectors(int(match[2])), Sectors(int(match[3]))

    def check_origin(self) -> None:
        """Raise `PointInTimeLost` unless the origin's live table is the one that we loaded.

        A foreign reload (``lvchange --refresh``) takes snapshot-origin out, and the snapshot
        stays valid for ever while nothing is saved: only the table tells.  A table that is
        ours *after* the read was ours during it, unless somebody took it out and put the very
        same one back, which nobody but us does.
        Proof: test_origin_table_replaced_is_noticed_by_the_next_segment.
        """
        said = _ask("origin", self._origin.table)
        if said.strip() != self._expected_raw and _words(said) != self._expected:
            raise PointInTimeLost(
                f"the origin's table was replaced by '{_shown(said)}': writes were not saved"
            )


class IdleValidator:
    """Nobody wrote to a device that was idle at begin time.

    *writes* counts the writes that the device has completed (kernel.sysfs.Sysfs.writes).
    A write is counted when it is complete, so one that is under way is met by a later check:
    that of the next segment, or `finish`, behind the flush of the destination.
    """

    cow: tuple[Sectors, Sectors] | None = None

    def __init__(self, writes: Callable[[], int], at_begin: int, path: str) -> None:
        self._writes = writes
        self._at_begin = at_begin
        self._path = path

    def check(self) -> None:
        """Raise `PointInTimeLost` when the counter moved, or the device went away."""
        try:
            now = self._writes()
        except OSError as exc:
            raise PointInTimeLost(f"{self._path} went away: {exc.strerror}") from exc
        if now != self._at_begin:
            raise PointInTimeLost(
                f"{self._path} was idle, but was written while it was copied "
                f"({now - self._at_begin} writes since begin time)"
            )

    def finish(self) -> None:
        """Check again: a write that the last segment's read met may be complete by now."""
        self.check()


def _ask(what: str, question: Callable[[], bytes]) -> bytes:
    try:
        return question()
    except DmFailed as exc:
        # Removed, or not to be asked: either way nothing says that the image is still there.
        raise PointInTimeLost(f"the {what} cannot be asked: {exc}") from exc


def _words(table: bytes) -> list[list[bytes]]:
    return [line.split() for line in table.splitlines() if line.strip()]


def _shown(said: bytes) -> str:
    return "; ".join(said.decode("ascii", "replace").split("\n")).strip() or "(nothing)"
