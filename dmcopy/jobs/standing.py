"""A begin time, from how it comes about to how it goes: what a job copies from.

Three ways to come by one: splice a snapshot in, claim an idle device, or find one standing
that an earlier process of the job left (`jobs.resume`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dmcopy.core.table import Table
from dmcopy.kernel.blkdev import locked
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.begin import Claim, Spliced
from dmcopy.stack.discover import Source
from dmcopy.stack.hold import Instant
from dmcopy.stack.plan import Plan
from dmcopy.units import Sectors

Json = dict[str, Any]  # Any: JSON


class Standing(ABC):
    """A begin time; `begin` first, `end` in every case."""

    snapshot: str | None = None  # /dev path of the kernel's own view, where there is one

    @abstractmethod
    def lines(self) -> tuple[str, ...]:
        """Give what `begin` does as shell lines."""

    @abstractmethod
    def begin(self, record: Callable[[str], None]) -> Instant | None:
        """Fix the begin time, or make sure that it stands; None when it was fixed before.

        *record* writes an intent durably.  Raises `PointInTimeLost` when it does not stand
        any more.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise `PointInTimeLost` or `Refused` where `begin` would; changes nothing."""

    @abstractmethod
    def reading(self) -> Json:
        """Give the part of the worker's ``copy`` request that says what is read."""

    def facts(self) -> Json:
        """Give what a later `jobs.resume` needs to know beside the source."""
        return {}

    @abstractmethod
    def end(self) -> float | None:
        """Put everything back as it was; give the seconds of the hold, if there was one.

        Once is enough.  Raises `LeftBehind`.
        """


def cow_reading(
    sysfs: Sysfs,
    *,
    source: str,
    cow: str,
    chunk: Sectors,
    snapshot_uuid: str,
    origin: str,
    origin_table: Table,
) -> Json:
    """Give the request for an image behind a snapshot; devices by devno, *chunk* in sectors."""
    return {
        "source_path": sysfs.node(source),
        "cow": {
            "path": sysfs.node(cow),
            "chunk_sectors": chunk,
            "snapshot_uuid": snapshot_uuid,
            "origin_devno": origin,
            "origin_table": str(origin_table),
        },
    }


class SplicedNow(Standing):
    """A snapshot that is spliced under the live source."""

    def __init__(self, spliced: Spliced, source: Source, chunk: Sectors, sysfs: Sysfs) -> None:
        self._spliced = spliced
        self._source = source
        self._chunk = chunk
        self._sysfs = sysfs

    def lines(self) -> tuple[str, ...]:
        return self._spliced.plan.lines()

    def check(self) -> None:
        """A new begin time cannot be missing."""

    def begin(self, record: Callable[[str], None]) -> Instant | None:
        # Alone: of two that load a table and resume, one would make the other's live, and take
        # the time of its own resume for the begin time.
        with locked(self._source.node):
            self._spliced.plan.run(record)
        self.snapshot = self._sysfs.node(self._spliced.snapshot.devno())
        return self._spliced.splice.instant

    def reading(self) -> Json:
        return cow_reading(
            self._sysfs,
            source=self._spliced.source.devno(),
            cow=self._spliced.cow.devno(),
            chunk=self._chunk,
            snapshot_uuid=self._spliced.snapshot.uuid,
            origin=self._source.devno,
            origin_table=self._spliced.origin_table(),
        )

    def end(self) -> float | None:
        self._spliced.plan.undo()
        held, self._spliced.splice.end_held = self._spliced.splice.end_held, None
        return held


class ClaimedNow(Standing):
    """A device that nobody uses, held by O_EXCL."""

    def __init__(self, claim: Claim, plan: Plan, source: Source) -> None:
        self._claim = claim
        self._plan = plan
        self._source = source

    def lines(self) -> tuple[str, ...]:
        return self._plan.lines()

    def check(self) -> None:
        """A new begin time cannot be missing."""

    def begin(self, record: Callable[[str], None]) -> Instant | None:
        self._plan.run(record)
        return self._claim.instant

    def reading(self) -> Json:
        idle = {"devno": self._source.devno, "writes": self._claim.writes}
        return {"source_path": self._source.node, "cow": None, "idle": idle}

    def facts(self) -> Json:
        return {"idle_writes": self._claim.writes}

    def end(self) -> float | None:
        self._plan.undo()
        return None
