"""Conducts the worker while it copies: takes what it says, serves who asks, watches the COW device.

One loop in one thread.  What is durable is put on record before the worker goes on; what is on
record may be retired.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from dmcopy.core import events
from dmcopy.core.extent import Extent
from dmcopy.core.order import Policy
from dmcopy.core.rate import Rate
from dmcopy.engine.request import extents_of, rows_of, runs_of
from dmcopy.engine.runs import Run
from dmcopy.errors import Cancelled, UsageError
from dmcopy.jobs.account import Account
from dmcopy.jobs.chronicle import Standing
from dmcopy.jobs.control import Asked, Desk
from dmcopy.jobs.cow_watch import LOOK_SECONDS
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.link import Message, WorkerLink
from dmcopy.jobs.pacing import Pacing
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.stamps import StampWatch
from dmcopy.jobs.state import State
from dmcopy.jobs.teller import Teller
from dmcopy.jobs.upkeep import Upkeep, wants_counts
from dmcopy.units import Bytes, Sectors, to_sectors

_NOTE_SECONDS: Final = 1.0  # how often the progress goes to the journal
_KNOWN_SECONDS: Final = 1.0  # that writes are counted before the begin time
_AFTER_SECONDS: Final = 1.0  # how long what comes after the copy is looked at, at most ...
_AFTER_SHARE: Final = 0.02  # ... and for a short one


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
        self._upkeep = Upkeep(prepared, host, journal, teller, account, clock=clock)
        self._stamps = StampWatch(
            prepared.source,
            host.sysfs,
            lambda stamp, seen: teller.record.stamp({"stamp": stamp.as_json(), "seen": seen}),
        )
        self._ordering: deque[Asked] = deque()  # who waits to be told the order
        self._looking: deque[Asked] = deque()  # who waits to be told what is on its way
        self._phase = "copy"
        self.spec = prepared.spec  # as it is now

    @property
    def runs(self) -> list[Run]:
        """What is durable at the destination, in the order of the image."""
        return [self._runs[start] for start in sorted(self._runs)]

    def copy(self, worker: WorkerLink, desk: Desk, reading: dict[str, Any]) -> None:  # Any: JSON
        """Have the worker copy what is left; all is durable, and on record, when it returns."""
        spec, retires = self.spec, self._prepared.retires[0]
        worker.send(
            "copy",
            **reading,
            done=[(run.extent.start, run.extent.length) for run in self.runs],
            batch_sectors=to_sectors(spec.batch),
            cap_path=str(self._host.places.cap),
            rate_bytes=spec.rate.limit,
            order={
                "policy": spec.order,
                "area_sectors": self._upkeep.area,
                "first": list(spec.first),
                "written": self._upkeep.written(),
            },
            short_batches=retires,
            gate=spec.gate == "segment",
            paused=spec.hold_start and self._prepared.earlier is None,
        )
        self._is_copying = True
        self._upkeep.start(worker)
        if spec.rate.auto:
            self._pacing = self._paced()
        self.follow(worker, "copied", desk)
        self._is_copying = False
        self._pacing = None
        while self._pausing:
            self._pausing.pop().refuse(self._too_late)
        for asked in (*self._ordering, *self._looking):
            asked.refuse(self._too_late)
        self._look(last=True)
        self._upkeep.arrays.look()
        self._phase = "after"

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count where the application writes, from before the begin time, if that is of use."""
        self._stamps.tick()
        if wants_counts(self.spec.order):
            self._upkeep.count()
        try:
            yield
        finally:
            self._upkeep.count_no_more()

    def get_to_know_the_writes(self) -> None:
        """Wait until the writes were counted for a second, where the order goes by them.

        What is hot is copied first only if it is known by then; and a copy takes longer.
        """
        while (left := _KNOWN_SECONDS - self._upkeep.counted_for) > 0:
            time.sleep(min(left, LOOK_SECONDS))

    def waiting(self, worker: WorkerLink, desk: Desk) -> Callable[[float], None]:
        """Give a function that waits so many seconds, and serves who asks."""

        def wait(seconds: float) -> None:
            end = self._clock() + seconds
            while (left := end - self._clock()) > 0:
                worker.receive(left, desk.fileno())  # it has nothing to say, unless it dies
                for asked in desk.asked():
                    self._serve(asked, worker)

        return wait

    def settle_arrays(self, worker: WorkerLink, desk: Desk) -> None:
        """Wait for a resync of an md array under the source, or pause it; serve who asks."""
        for warning in self._prepared.warnings:
            self._teller.warn(warning)
        self._upkeep.arrays.settle(self.waiting(worker, desk))

    def verify(self, worker: WorkerLink, desk: Desk) -> Message:
        """Have the worker read everything back; gives its last word."""
        self._phase = "verify"
        worker.send("verify", rows=rows_of(self.runs))
        said = self.follow(worker, "verified", desk)
        self._look(last=True)
        self._phase = "after"
        return said

    def settle(self) -> None:
        """Look a little longer, so that the history shows what comes after; keep it."""
        took = self._account.copy_seconds or 0.0
        end = self._clock() + min(_AFTER_SECONDS, took * _AFTER_SHARE)
        while (left := end - self._clock()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
            self._look()
        self._look(last=True)

    def release(self, *, worker_gone: bool = False) -> None:
        """Let go of what is held; never fails (`Upkeep.release`)."""
        self._upkeep.release(worker_gone=worker_gone)

    def follow(self, worker: WorkerLink, until: str, desk: Desk | None) -> Message:
        """Take the worker's messages until the one that is waited for; serve who asks."""
        also = () if desk is None else (desk.fileno(),)
        while True:
            if self._upkeep.failure is not None:
                raise self._upkeep.failure
            message = self._upkeep.later.popleft() if self._upkeep.later else None
            message = message or worker.receive(LOOK_SECONDS, *also)
            if desk is not None:
                for asked in desk.asked():
                    self._serve(asked, worker)
            if self._pacing is not None and not self._is_paused:
                self._pacing.tick(self._account.done)
            self._upkeep.tick()
            self._look()
            if message is None:
                continue
            match message["is"]:
                case "progress" | "copied":
                    self._progress(message)
                case "durable":
                    self._progress(message)
                    self._commit(message)
                    worker.send("journaled")
                    self._upkeep.durable(everything=self._is_all_done)
                case "gate":
                    start, length = Sectors(message["start"]), Sectors(message["length"])
                    self._upkeep.gate(Extent(start, length))
                    worker.send("gated")
                case "order" if self._ordering:
                    self._ordering.popleft().answer(
                        next=message["next"], left_sectors=message["left_sectors"]
                    )
                case "look" if self._looking:
                    self._looking.popleft().answer(batch=message["batch"], **self._upkeep.held())
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
        self._teller.chronicle.copied(message["cells"])

    @property
    def _is_all_done(self) -> bool:
        durable = sum(run.extent.length for run in self._runs.values())
        return durable == self._prepared.source.length

    def _look(self, *, last: bool = False) -> None:
        """Take a look for the history."""
        self._stamps.tick()
        self._teller.chronicle.tick(
            Standing(
                self._phase,
                self._account.done,
                self._account.retired,
                self._account.cow,
                self._upkeep.outlook,
            ),
            last=last,
        )

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
            case "order" if self._is_copying:
                self._reorder(asked, worker)
            case "order":
                asked.refuse(self._too_late)
            case "look" if self._is_copying:
                self._looking.append(asked)
                worker.send("look")
            case "look":
                asked.refuse(self._too_late)
            case "cancel":
                asked.answer()
                raise Cancelled("cancelled")
            case _:
                asked.refuse(f"a running job does not know '{asked.verb}'")

    @property
    def _too_late(self) -> str:
        return f"job {self._name} has copied everything"

    def _set_rate(self, asked: Asked) -> None:
        try:
            rate = Rate.parse(str(asked.request.get("rate")))
        except UsageError as exc:
            asked.refuse(str(exc))
            return
        self.spec = self.spec.at_rate(rate)
        self._teller.record.spec(self._prepared.recorded(self.spec))
        self._upkeep.tell("rate", rate_bytes=rate.limit)
        self._pacing = self._paced() if rate.auto and self._is_copying else None
        asked.answer()

    def _reorder(self, asked: Asked, worker: WorkerLink) -> None:
        """Pass another order on; who asked is told the order when the worker has it."""
        words = asked.request
        changes: dict[str, Any] = {}  # Any: JSON
        if "first" in words:
            changes = {"first": words["first"], "only": bool(words.get("only"))}
        if "policy" in words:
            changes["policy"] = words["policy"]
        try:
            first = extents_of(words["first"]) if "first" in words else None
            policy = Policy(words["policy"]) if "policy" in words else None
        except (TypeError, ValueError):
            asked.refuse("that is no order")
            return
        if policy is not None and wants_counts(policy):
            self._upkeep.count()
        if changes:
            self.spec = self.spec.ordered(first=first, policy=policy)
            self._teller.record.spec(self._prepared.recorded(self.spec))
        self._ordering.append(asked)
        worker.send("order", **changes)
        if changes.get("only") and self._is_paused:
            self._go(worker)

    def _paced(self) -> Pacing:
        def set_rate(rate: Bytes) -> None:
            self._upkeep.tell("rate", rate_bytes=rate)

        return Pacing(self._host.sysfs, self._prepared.source.devno, set_rate, clock=self._clock)

    def _pause(self) -> None:
        self._is_paused = True
        self._upkeep.arrays.let_go()
        self._teller.record.move(State.PAUSED)
        self._teller.happened(events.Paused(job=self._name, bytes_done=self._account.done))
        while self._pausing:
            self._pausing.pop().answer()

    def _go_on(self, asked: Asked, worker: WorkerLink) -> None:
        if not self._is_paused:
            asked.refuse(f"job {self._name} is running")
            return
        self._go(worker)
        asked.answer()

    def _go(self, worker: WorkerLink) -> None:
        self._is_paused = False
        self._upkeep.arrays.pause_again()
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
