"""A begin time, from how it comes about to how it goes: what a job copies from.

Three ways to come by one: splice a snapshot in, claim an idle device, or find one standing
that an earlier process of the job left (`jobs.resume`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dmcopy.core import events
from dmcopy.core.table import Table
from dmcopy.kernel.blkdev import locked
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.begin import Attend, Claim, Spliced
from dmcopy.stack.discover import Source
from dmcopy.stack.hold import Instant
from dmcopy.stack.plan import Around, Plan, Step
from dmcopy.stack.together import Meet
from dmcopy.units import Sectors

Json = dict[str, Any]  # Any: JSON


class Standing(ABC):
    """A begin time; `begin` first, `end` in every case."""

    snapshot: str | None = None  # /dev path of the kernel's own view, where there is one
    warnings: tuple[str, ...] = ()  # what a person should know of how it began
    plan: Plan | None = None  # what `begin` does to the machine, where it does something

    @abstractmethod
    def lines(self) -> tuple[str, ...]:
        """Give what `begin` does as shell lines."""

    def get_ready(  # noqa: B027 (most are)
        self,
        record: Callable[[str], None],
        wait: Callable[[float], None],
        tell: Callable[[events.Event], None],
    ) -> None:
        """Do what takes long before `begin`; *record* as there, *wait* serves who asks meanwhile.

        What it did is undone by `end`.
        """

    @abstractmethod
    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        """Fix the begin time, or make sure that it stands; None when it was fixed before.

        *record* writes an intent durably; *around* goes around a new instant.  Raises
        `PointInTimeLost` when it does not stand any more.
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


def frozen_already(source: Source) -> str:
    """Say that the file system on *source* was not frozen by us."""
    return (
        f"the file system on {source.path} was frozen already, by somebody else, and is in the "
        "copy as it was then"
    )


class SplicedNow(Standing):
    """A snapshot that is spliced under the live source."""

    def __init__(self, spliced: Spliced, source: Source, chunk: Sectors, sysfs: Sysfs) -> None:
        self._spliced = spliced
        self.plan = spliced.plan
        self._source = source
        self._chunk = chunk
        self._sysfs = sysfs

    def lines(self) -> tuple[str, ...]:
        return self._spliced.plan.lines()

    def check(self) -> None:
        """A new begin time cannot be missing."""

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        # Alone: of two that load a table and resume, one would make the other's live, and take
        # the time of its own resume for the begin time.
        with locked(self._source.node):
            self._spliced.plan.run(record, around)
        if self._spliced.splice.was_frozen:
            self.warnings = (frozen_already(self._source),)
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

    def __init__(
        self,
        claim: Claim,
        source: Source,
        *,
        job: str,
        late: bool = False,
        meet: Meet | None = None,
    ) -> None:
        """With *meet* the begin time is that of an instant that others have too.

        *late*: hooks have their say before the claim, which is the instant; else a signal may end
        it.
        """
        self._claim = claim
        self._attend = Attend(meet) if meet is not None else None
        critical: list[Step] = [self._attend] if self._attend is not None else []
        critical = [claim, *critical] if late else critical
        self.plan = Plan(job=job, prepare=[] if late else [claim], critical=critical)
        self._source = source

    def lines(self) -> tuple[str, ...]:
        assert self.plan is not None
        return self.plan.lines()

    def check(self) -> None:
        """A new begin time cannot be missing."""

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        assert self.plan is not None
        self.plan.run(record, around)
        return self._attend.instant if self._attend is not None else self._claim.instant

    def reading(self) -> Json:
        idle = {"devno": self._source.devno, "writes": self._claim.writes}
        return {"source_path": self._source.node, "cow": None, "idle": idle}

    def facts(self) -> Json:
        return {"idle_writes": self._claim.writes}

    def end(self) -> float | None:
        assert self.plan is not None
        self.plan.undo()
        return None
