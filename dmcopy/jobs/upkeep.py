"""What a running job does for its snapshot while the worker copies.

It watches the COW device (`cow_watch`), retires what is copied (`retiring`) or gates the segment
that is being copied (`gating`), and counts where the application writes.  Whatever changes the
tables that writes pass through tells the worker first, for the worker takes every other table for
a stranger's.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

from dmcopy.core import geometry
from dmcopy.core.extent import Extent
from dmcopy.core.forecast import Forecast, Outlook
from dmcopy.core.order import Policy
from dmcopy.errors import DmcopyError, DmFailed, Interrupted, PointInTimeLost
from dmcopy.jobs.account import Account
from dmcopy.jobs.arrays import Arrays
from dmcopy.jobs.cow_watch import CowWatch, Steer
from dmcopy.jobs.gating import Gating
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.link import Message, WorkerLink
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.retiring import Retiring
from dmcopy.jobs.teller import Teller
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.brake import Brake
from dmcopy.stack.counters import WriteCounter, counter_area
from dmcopy.stack.cow import CowPlan, CowSnapshot
from dmcopy.stack.gate import LiveTables
from dmcopy.stack.grow import Growing, grower
from dmcopy.stack.layers import Layers
from dmcopy.stack.lvm_guard import Guard, only_ours
from dmcopy.stack.names import Role
from dmcopy.stack.plan import signals_deferred
from dmcopy.stack.retire import Retire
from dmcopy.units import Bytes, Sectors, to_bytes, to_sectors

_COUNT_SECONDS: Final = 0.5  # how often the worker is told where the application writes


class Upkeep:
    """The upkeep of one job's snapshot; does nothing where there is none.

    `count` before the begin time, `start` when the worker copies, `tick` often, `release` in
    every case.
    """

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
        self._worker: WorkerLink | None = None  # while it takes what it is told
        self._watch: CowWatch | None = None
        self._retiring: Retiring | None = None
        self._gating: Gating | None = None
        self._counter: WriteCounter | None = None
        self._counting = 0.0  # since when
        self._counted = 0.0
        self._retired: list[Extent] = []
        self.arrays = Arrays(
            host, prepared.spec, prepared.source.devno, teller, account, clock=clock
        )
        self.later: deque[Message] = deque()  # what the worker said while it was told something
        self.failure: DmcopyError | None = None  # of the worker, met then

    @property
    def area(self) -> Sectors:
        """The areas that writes are counted by."""
        return counter_area(self._prepared.source.length, self._prepared.segment)

    @property
    def outlook(self) -> Outlook | None:
        """What is to be expected of the COW device."""
        return self._watch.outlook if self._watch is not None else None

    # where the application writes

    def count(self) -> None:
        """Count where the application writes, if nobody does yet."""
        origin = self._origin()
        if origin is None or self._counter is not None:
            return
        dm, name = origin
        counter = WriteCounter(dm, job=self._name, origin=name, area=self.area)
        try:
            counter.start()
        except (DmFailed, ValueError) as exc:
            self._teller.warn(f"the kernel does not count the writes, so none are hot: {exc}")
        else:
            self._counter = counter
            self._counting = self._clock()

    @property
    def counted_for(self) -> float:
        """For how many seconds the writes have been counted; for ever where nobody counts."""
        return self._clock() - self._counting if self._counter is not None else math.inf

    def written(self) -> list[tuple[int, int]]:
        """Give where the application wrote since the last time: area, and how often."""
        if self._counter is None:
            return []
        self._counted = self._clock()
        try:
            return self._counter.take()
        except (DmFailed, ValueError) as exc:
            self.count_no_more()
            self._teller.warn(f"the kernel counts the writes no more: {exc}")
            return []

    def count_no_more(self) -> None:
        """Take the counters away."""
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.end()

    # while it copies

    def start(self, worker: WorkerLink) -> None:
        """Begin; *worker* copies from now on.  Raises `PointInTimeLost`."""
        self._worker = worker
        origin = self._origin()
        if origin is None:
            return
        dm, name = origin
        spec, teller = self._prepared.spec, self._teller
        guard = self._guard(dm)

        def brake() -> Brake:
            return Brake(
                dm,
                job=spec.name,
                origin=name,
                segment=self._prepared.segment,
                hold_limit=spec.hold_limit,
                announce=self._announce,
                guard=guard,
            )

        if spec.gate == "segment":
            self._gating = Gating(
                spec.name,
                brake(),
                self._retire,
                teller.gated,
                teller.warn,
                hold_limit=spec.hold_limit,
                clock=self._clock,
            )
        gating = self._gating
        # with a gate the brake's devices are there: holding everything is another table for them
        make_brake = (lambda: gating.brake) if gating is not None else brake
        self._watch = self._watcher(dm, make_brake if spec.on_full == "hold" else None)
        if gating is not None and not self._starts(gating):
            self._gating = None
        if self._gating is None and self._prepared.retires[0]:
            retire = Retire(
                dm,
                job=spec.name,
                origin=name,
                hold_limit=spec.hold_limit,
                announce=self._announce,
                guard=guard,
            )
            self._retiring = Retiring(
                retire, self._retire, teller.hold, teller.warn, clock=self._clock
            )

    def _starts(self, gating: Gating) -> bool:
        """Put the gate in; tell whether it is there.  Without one the copy is as right."""
        try:
            gating.start()
        except (PointInTimeLost, Interrupted):
            raise
        except DmcopyError as exc:
            self._teller.warn(f"no segment is gated, what is written is saved: {exc}")
            return False
        return True

    def tick(self) -> None:
        """Look at everything for which it is time."""
        self.arrays.tick()
        if self._watch is not None:
            self._watch.tick(self._account.done)
            self._account.watched(self._watch.cow, self._watch.outlook)
        if self._counter is not None and self._clock() - self._counted >= _COUNT_SECONDS:
            areas = self.written()
            if areas:
                self.tell("written", areas=areas)

    def gate(self, segment: Extent) -> None:
        """Hold writes to *segment*, which is about to be read, if there is a gate."""
        if self._gating is not None:
            self._gating.up(segment)

    def durable(self, *, everything: bool) -> None:
        """Retire what is on record by now, and let go of the writes that wait for it.

        *everything* is copied: then the snapshot goes anyway, and only what waits is let go.
        """
        if self._watch is not None:
            self._watch.durable()
        if self._gating is not None:
            self._gating.durable()
            self._account.retired = self._gating.retired
        elif self._retiring is not None and not everything and not self._is_braked:
            self._retiring.durable()
            self._account.retired = self._retiring.retired

    @property
    def _is_braked(self) -> bool:
        """Whether the brake is on: then it retires."""
        return self._watch is not None and self._watch.is_braked

    def held(self) -> dict[str, Any]:  # Any: JSON
        """Tell what the gate holds, and for how many seconds it has."""
        gated = self._gating.gated if self._gating is not None else None
        if gated is None:
            return {"gated": None}
        extent, seconds = gated
        return {"gated": list(extent), "seconds": seconds}

    def release(self, *, worker_gone: bool = False) -> None:
        """Let go of what is held: nothing is held for a job that does not copy.

        Never fails: taking the job apart, or going on with it, finds what is left of a brake.
        """
        if worker_gone:
            self._worker = None
        self.arrays.let_go()
        watch, self._watch = self._watch, None
        gating, self._gating = self._gating, None
        retiring, self._retiring = self._retiring, None
        if retiring is not None:
            retiring.end()
        try:
            with signals_deferred():
                if watch is not None:
                    watch.end()
                if gating is not None:
                    gating.end()
        except Interrupted:
            raise
        except DmcopyError as exc:
            self._teller.warn(f"the brake's devices could not be removed: {exc}")

    def tell(self, do: str, **fields: object) -> None:
        """Tell the worker, if there is one."""
        if self._worker is not None:
            self._worker.send(do, **fields)

    def _origin(self) -> tuple[Dm, str] | None:
        """Give device-mapper and the origin's dm name, None where there is no snapshot."""
        dm, name = self._host.dm, self._prepared.source.dm_name
        if self._prepared.cow is None or dm is None or name is None:
            return None
        return dm, name

    def _watcher(self, dm: Dm, make_brake: Callable[[], Brake] | None) -> CowWatch:
        prepared, spec = self._prepared, self._prepared.spec
        assert prepared.cow is not None
        chunk = to_sectors(spec.chunk)
        return CowWatch(
            dm,
            spec.name,
            self._snapshot_name(dm),
            Forecast(most=to_bytes(geometry.never_overflow(prepared.source.length, chunk))),
            Steer(
                retire=self._retire,
                first=lambda extents: self.tell("held", extents=list(extents)),
                batches=self._set_batches,
                tell=self._teller.happened,
                warn=self._teller.warn,
                hold=self._teller.hold,
            ),
            size=self._account.total,
            grower=self._grower(dm, prepared.cow, chunk),
            brake=make_brake,
            hold_limit=spec.hold_limit,
            clock=self._clock,
        )

    def _guard(self, dm: Dm) -> Guard:
        """Give what is entered around swaps of the origin: it may have other snapshots by LVM."""
        cow, source = self._prepared.cow, self._prepared.source
        if not isinstance(cow, CowSnapshot):
            return nullcontext
        return only_ours(dm, self._host.sysfs, job=self._name, vg=cow.vg, origin=source.devno)

    def _grower(self, dm: Dm, cow: CowPlan, chunk: Sectors) -> Growing | None:
        if isinstance(cow, CowSnapshot) and self._gating is not None:
            return None  # LVM cannot extend it under our gate
        return grower(
            cow,
            job=self._name,
            dm=dm,
            sysfs=self._host.sysfs,
            lvm=Lvm(self._host.run),
            chunk=chunk,
            hold_limit=self._prepared.spec.hold_limit,
        )

    def _snapshot_name(self, dm: Dm) -> str:
        snapshot = Layers(dm, self._name).info(Role.SNAP)
        if snapshot is None:
            raise PointInTimeLost(f"the snapshot of job {self._name} was removed")
        return snapshot.name

    def _set_batches(self, most: Bytes, seconds: float) -> None:
        self.tell("batch", batch_sectors=to_sectors(most), seconds=seconds)

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
                    self.later.append(message)
        except DmcopyError as exc:
            # It reads no more, so it need not know; the brake goes on, or is taken out, first.
            self._worker, self.failure = None, exc

    def _retire(self) -> list[Extent]:
        """Put on record that what is durable is retired; give all that is."""
        if not self._teller.record.is_behind:  # else the journal does not know what is durable
            self._journal.retire(self._name)
            self._retired = [row.extent for row in self._journal.done(self._name)]
        return self._retired


def wants_counts(policy: Policy) -> bool:
    """Tell whether the order goes by where the application writes."""
    return policy is Policy.HOT
