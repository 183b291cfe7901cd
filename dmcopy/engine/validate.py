"""Is the point in time still there?  Asked after each segment was read, before it is used.

Not for finding out why it was lost: the kernel's own words are handed on.

Kernel: drivers/md/dm-snap.c (snapshot_status, __invalidate_snapshot), KERNEL.md 2 and 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

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


class Layer(NamedTuple):
    """A device that the origin's writes pass through, and the tables that it may have."""

    name: str  # for a person
    probe: Probe
    tables: Collection[bytes]


_Words = list[list[bytes]]


class _Expected(NamedTuple):
    what: str
    probe: Probe
    raw: frozenset[bytes]
    words: tuple[_Words, ...]

    def check(self) -> None:
        said = _ask(self.what, self.probe.table)
        if said.strip() not in self.raw and _words(said) not in self.words:
            raise PointInTimeLost(
                f"the {self.what}'s table was replaced by '{_shown(said)}': writes were not saved"
            )


class SnapshotValidator:
    """The snapshot is valid, and the origin's writes still go through it."""

    def __init__(self, snapshot: Probe, origin: Probe, expected_origin_table: bytes) -> None:
        """*expected_origin_table* is what ``dmsetup table`` says of the spliced origin."""
        self._snapshot = snapshot
        self._origin = origin
        self._expected: tuple[_Expected, ...] = ()
        self.allow([expected_origin_table])
        self.cow: tuple[Sectors, Sectors] | None = None

    def allow(self, origin_tables: Collection[bytes], layers: Sequence[Layer] = ()) -> None:
        """Take just these tables for ours from the next check on; any thread may call this.

        To be called before control swaps one in, with the old and the new; and after it, with
        the new one alone.  *layers* are what lies between origin and source (the brake): a
        stranger's table on one of them would end the saving as silently as one on the origin.
        """
        all_of_them = (Layer("origin", self._origin, origin_tables), *layers)
        self._expected = tuple(
            _Expected(
                layer.name,
                layer.probe,
                frozenset(table.strip() for table in layer.tables),
                tuple(_words(table) for table in layer.tables),
            )
            for layer in all_of_them
        )

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
        if match is None and b" snapshot " not in b" ".join(said.split()[:3]) + b" ":
            raise PointInTimeLost(
                f"the snapshot was taken away by somebody else: its device says '{_shown(said)}'"
            )
        if match is None:
            raise PointInTimeLost(
                f"the snapshot is no longer valid: the kernel says '{_shown(said)}', because "
                "the COW device is full or failed"
            )
        self.cow = Sectors(int(match[2])), Sectors(int(match[3]))

    def check_origin(self) -> None:
        """Raise `PointInTimeLost` unless the origin's live table is one that we loaded.

        So are those of the layers below it, where there are any.

        A foreign reload (``lvchange --refresh``) takes snapshot-origin out, and the snapshot
        stays valid for ever while nothing is saved: only the table tells.  A table that is
        ours *after* the read was ours during it, unless somebody took it out and put the very
        same one back, which nobody but us does.
        Proof: test_origin_table_replaced_is_noticed_by_the_next_segment.
        """
        while True:
            expected = self._expected
            try:
                for one in expected:
                    one.check()
                return
            except PointInTimeLost:
                # Control may have announced its next table, and swapped it in, since we began.
                if self._expected is expected:
                    raise


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


def _words(table: bytes) -> _Words:
    return [line.split() for line in table.splitlines() if line.strip()]


def _shown(said: bytes) -> str:
    return "; ".join(said.decode("ascii", "replace").split("\n")).strip() or "(nothing)"
