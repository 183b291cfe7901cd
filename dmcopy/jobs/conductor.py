"""Conducts the worker while it copies: takes what it says, serves who asks, watches the COW device.

One loop in one thread.  What is durable is put on record before the worker goes on; what is on
record may be retired.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dmcopy.core import events, geometry
from dmcopy.core.extent import Extent
from dmcopy.core.forecast import Forecast
from dmcopy.core.rate import Rate
from dmcopy.engine.request import rows_of, runs_of
from dmcopy.engine.runs import Run
from dmcopy.errors import Cancelled, DmcopyError, Interrupted, UsageError
from dmcopy.jobs.account import Account
from dmcopy.jobs.control import Asked, Desk
from dmcopy.jobs.cow_watch import LOOK_SECONDS, CowWatch, Steer
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.link import Message, WorkerLink
from dmcopy.jobs.pacing import Pacing
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.state import State
from dmcopy.jobs.teller import Teller
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.brake import Brake
from dmcopy.stack.gate import LiveTables
from dmcopy.stack.grow import grower
from dmcopy.stack.names import Role, device_name
from dmcopy.stack.plan import signals_deferred
from dmcopy.units import Bytes, Sectors, to_bytes, to_sectors

_NOTE_SECONDS: Final = 1.0  # how often the progress goes to the journal


class Conductor:
    """Conducts one job; `release` in every case, when the worker is gone or has copied."""

    def __init__(
        self,
        prepared: Prepared,
        host: Host,
        journal: Journal,
        teller: Teller,
        account: Account,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prepared = prepared
        self._host = host
        self._journal = journal
        self._teller = teller
        self._account = account
        self._clock = clock
        self._name = prepared.spec.name
        self._noted = 0.0
        self._runs: dict[Sectors, Run] = {}
        if prepared.earlier is not None:
            for row in prepared.earlier.done:
                self._runs[row.extent.start] = Run(row.extent, row.digest)
        self._is_copying = False
        self._is_paused = False
        self._pausing: list[Asked] = []  # who is told when the copy is paused
        self._pacing: Pacing | None = None
        self._watch: CowWatch | None = None
        self._worker: WorkerLink | None = None  # while it takes what it is told
        self._later: deque[Message] = deque()  # what it said while something else was waited for
        self._failure: DmcopyError | None = None  # of the worker, met while it was told something
        self._retired: list[Extent] = []
        self.spec = prepared.spec  # as it is now

    @property
    def runs(self) -> list[Run]:
        """What is durable at the destination, in the order of the image."""
        return [self._runs[start] for start in sorted(self._runs)]

    def copy(self, worker: WorkerLink, desk: Desk, reading: dict[str, Any]) -> None:  # Any: JSON
        """Have the worker copy what is left; all is durable, and on record, when it returns."""
        worker.send(
            "copy",
            **reading,
            done=[(run.extent.start, run.extent.length) for run in self.runs],
            batch_sectors=to_sectors(self.spec.batch),
            cap_path=str(self._host.places.cap),
            rate_bytes=self.spec.rate.limit,
        )
        self._worker = worker
        self._is_copying = True
        self._watch = self._watched()
        if self.spec.rate.auto:
            self._pacing = self._paced()
        self.follow(worker, "copied", desk)
        self._is_copying = False
        self._pacing = None
        while self._pausing:
            self._pausing.pop().refuse(f"job {self._name} has copied everything")

    def verify(self, worker: WorkerLink, desk: Desk) -> Message:
        """Have the worker read everything back; gives its last word."""
        worker.send("verify", rows=rows_of(self.runs))
        return self.follow(worker, "verified", desk)

    def release(self, *, worker_gone: bool = False) -> None:
        """Let go of what the brake holds: nothing is held for a job that does not copy.

        Never fails: taking the job apart, or going on with it, finds what is left of a brake.
        """
        if worker_gone:
            self._worker = None
        if self._watch is not None:
            watch, self._watch = self._watch, None
            try:
                with signals_deferred():
                    watch.end()
            except Interrupted:
                raise
            except DmcopyError as exc:
                self._teller.warn(f"the brake's devices could not be removed: {exc}")

    def follow(self, worker: WorkerLink, until: str, desk: Desk | None) -> Message:
        """Take the worker's messages until the one that is waited for; serve who asks."""
        also = () if desk is None else (desk.fileno(),)
        while True:
            if self._failure is not None:
                raise self._failure
            message = self._later.popleft() if self._later else None
            message = message or worker.receive(LOOK_SECONDS, *also)
            if desk is not None:
                for asked in desk.asked():
                    self._serve(asked, worker)
            if self._pacing is not None and not self._is_paused:
                self._pacing.tick(self._account.done)
            if self._watch is not None:
                self._watch.tick(self._account.done)
                self._account.watched(self._watch.cow, self._watch.outlook)
            if message is None:
                continue
            match message["is"]:
                case "progress" | "copied":
                    self._progress(message)
                case "durable":
                    self._progress(message)
                    self._commit(message)
                    worker.send("journaled")
                    if self._watch is not None:
                        self._watch.durable()
                case "paused":
                    self._pause()
                case "warning":
                    self._teller.warn(str(message["message"]))
            if message["is"] == until:
                return message

    def _progress(self, message: Message) -> None:
        if message["is"] == "copied":
            self._account.copy_seconds = message["seconds"]
        event = self._account.progress(message)
        if message["is"] == "durable" or self._clock() - self._noted > _NOTE_SECONDS:
            self._noted = self._clock()
            self._teller.record.progress(event.as_json())
        self._teller.tell(event)

    def _commit(self, message: Message) -> None:
        """Put on record what is durable at the destination: it is never copied again."""
        runs = runs_of(message["rows"])
        self._runs |= {run.extent.start: run for run in runs}
        rows = [(run.extent, run.digest) for run in runs]
        self._teller.record.commit(rows, self._account.counts())

    def _serve(self, asked: Asked, worker: WorkerLink) -> None:
        match asked.verb:
            case "pause" if self._is_paused:
                asked.answer()
            case "pause" if self._is_copying:
                self._pausing.append(asked)
                worker.send("pause")
            case "pause":
                asked.refuse(f"job {self._name} is not copying, so it cannot be paused")
            case "resume":
                self._go_on(asked, worker)
            case "set":
                self._set_rate(asked)
            case "cancel":
                asked.answer()
                raise Cancelled("cancelled")
            case _:
                asked.refuse(f"a running job does not know '{asked.verb}'")

    def _set_rate(self, asked: Asked) -> None:
        try:
            rate = Rate.parse(str(asked.request.get("rate")))
        except UsageError as exc:
            asked.refuse(str(exc))
            return
        self.spec = self.spec.at_rate(rate)
        self._teller.record.spec(self._prepared.recorded(self.spec))
        self._tell("rate", rate_bytes=rate.limit)
        self._pacing = self._paced() if rate.auto and self._is_copying else None
        asked.answer()

    def _paced(self) -> Pacing:
        def set_rate(rate: Bytes) -> None:
            self._tell("rate", rate_bytes=rate)

        return Pacing(self._host.sysfs, self._prepared.source.devno, set_rate, clock=self._clock)

    def _pause(self) -> None:
        self._is_paused = True
        self._teller.record.move(State.PAUSED)
        self._teller.happened(events.Paused(job=self._name, bytes_done=self._account.done))
        while self._pausing:
            self._pausing.pop().answer()

    def _go_on(self, asked: Asked, worker: WorkerLink) -> None:
        if not self._is_paused:
            asked.refuse(f"job {self._name} is running")
            return
        self._is_paused = False
        self._teller.record.move(State.COPYING)
        worker.send("go")
        assert self._account.begin_time is not None
        self._teller.happened(
            events.Resumed(
                job=self._name,
                begin_time=self._account.begin_time,
                bytes_done=self._account.done,
            )
        )
        asked.answer()

    # the COW device

    def _watched(self) -> CowWatch | None:
        """Make what watches the COW device, where there is one."""
        prepared, spec, dm = self._prepared, self.spec, self._host.dm
        name = prepared.source.dm_name
        if prepared.cow is None or dm is None or name is None:
            return None
        chunk = to_sectors(spec.chunk)

        def brake() -> Brake:
            return Brake(
                dm,
                job=spec.name,
                origin=name,
                segment=prepared.segment,
                hold_limit=spec.hold_limit,
                announce=self._announce,
            )

        return CowWatch(
            dm,
            spec.name,
            device_name(spec.name, Role.SNAP),
            Forecast(most=to_bytes(geometry.never_overflow(prepared.source.length, chunk))),
            Steer(
                retire=self._retire,
                first=lambda extents: self._tell("first", extents=list(extents)),
                batches=lambda most, seconds: self._tell(
                    "batch", batch_sectors=to_sectors(most), seconds=seconds
                ),
                tell=self._teller.happened,
                warn=self._teller.warn,
                hold=self._teller.hold,
            ),
            size=self._account.total,
            grower=grower(
                prepared.cow,
                job=spec.name,
                dm=dm,
                sysfs=self._host.sysfs,
                lvm=Lvm(self._host.run),
                chunk=chunk,
                hold_limit=spec.hold_limit,
            ),
            brake=brake if spec.on_full == "hold" else None,
            hold_limit=spec.hold_limit,
            clock=self._clock,
        )

    def _tell(self, do: str, **fields: object) -> None:
        if self._worker is not None:
            self._worker.send(do, **fields)

    def _announce(self, live: LiveTables) -> None:
        """Have the worker go by other tables; returns when it does."""
        if self._worker is None:
            return
        self._worker.send(
            "tables",
            origin=[table.decode() for table in sorted(live.origin)],
            layers={
                uuid: [table.decode() for table in sorted(tables)]
                for uuid, tables in live.layers.items()
            },
        )
        try:
            while (message := self._worker.receive()) is None or message["is"] != "tables":
                if message is not None:
                    self._later.append(message)
        except DmcopyError as exc:
            # It reads no more, so it need not know; the brake goes on, or is taken out, first.
            self._worker, self._failure = None, exc

    def _retire(self) -> list[Extent]:
        """Put on record that what is durable is retired; give all that is."""
        if not self._teller.record.is_behind:  # else the journal does not know what is durable
            self._journal.retire(self._name)
            self._retired = [row.extent for row in self._journal.done(self._name)]
        return self._retired
