"""The worker's service: one job from ``open`` to ``complete``.

Requests: ``open``, ``copy``, perhaps ``verify``, then ``complete``.  While it copies, served at
once: ``rate``; ``pause``; ``held`` (where writes wait: that goes before all else); ``order`` (what
the user wants first; answered); ``look`` (what is on its way; answered); ``written`` (where writes
go); ``batch`` (how large one is); ``tables`` (what the origin may have from now on; answered).

After each batch it says ``durable`` and goes on when control answers ``journaled``; when it was
asked to pause it says ``paused`` and waits for ``go``.  With a gate it says ``gate`` before each
segment, which is a batch of its own then, and waits for ``gated``.  It ends early, with
everything closed, when its stdin closes or a SIGTERM comes.

What it works with (which destination, which devices) is handed in as a `Workshop`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Final, NamedTuple, Protocol

from dmcopy.core.batch import BatchPace
from dmcopy.core.extent import Extent, merge
from dmcopy.core.history import cell_size
from dmcopy.core.order import Policy
from dmcopy.core.segment import Rank, Remaining
from dmcopy.engine.buffers import BufferPool
from dmcopy.engine.channel import Channel
from dmcopy.engine.copier import Copier, Counts, SegmentReader, Sink
from dmcopy.engine.exceptions_view import ExceptionView
from dmcopy.engine.ordering import Ordering
from dmcopy.engine.pipeline import Stop
from dmcopy.engine.request import (
    CopyRequest,
    Message,
    OpenRequest,
    TablesRequest,
    counts_of,
    extents_of,
    rows_of,
    runs_of,
)
from dmcopy.engine.runs import Digest, Runs
from dmcopy.engine.validate import Validator
from dmcopy.engine.verify import Readable, Verifier
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.units import Bytes, Sectors, sectors_down, to_bytes

log = logging.getLogger(__name__)

BUFFERS: Final = 4  # one is read, one written and hashed, two wait where the speeds differ
_BATCH_SECONDS: Final = 5.0  # so much work an interruption costs at most, or a batch
_MOST_TOLD: Final = 100  # extents of the order, when somebody asks


class WorkSession(Sink, Readable, Protocol):
    """An open destination (destinations.base.Session)."""

    @property
    def mark(self) -> Mapping[str, str | int]:
        """What tells this session's work from any other's, for going on with it."""

    def keep(self) -> None:
        """Leave what was written when the session ends: the journal counts on it."""

    def complete(self) -> None:
        """Say that the image is whole."""


class Throttle(Protocol):
    """Keeps the rate of a copy down; an engine.throttle.Throttle is one."""

    @property
    def rate(self) -> Bytes | None:
        """Bytes a second, None for no limit."""

    @rate.setter
    def rate(self, rate: Bytes | None) -> None:
        """Change it, at any time."""

    def wait(self, size: int) -> None:
        """Return when *size* bytes may be read."""


Saw = Callable[[Sequence[int]], None]


class Reading(NamedTuple):
    """How a source is read."""

    reader: SegmentReader
    view: ExceptionView
    validator: Validator
    allow: Callable[[TablesRequest], None] = lambda _: None


class Workshop(Protocol):
    """What the service works with; jobs.worker has the real one."""

    def open(self, request: OpenRequest) -> AbstractContextManager[WorkSession]:
        """Open the destination and hold it."""

    def read(self, request: CopyRequest, saw: Saw) -> AbstractContextManager[Reading]:
        """Open what is to be read; *saw* is told which chunks were saved since the last time."""

    def digest(self, name: str) -> Digest | None:
        """Give a new digest, None for ``none``."""

    def throttle(self, request: CopyRequest) -> AbstractContextManager[Throttle]:
        """Give what keeps the copy at its rate, and all copies of the host below their cap."""

    def lock_memory(self) -> bool:
        """Keep the process in RAM; tell whether it worked."""


class Service:
    """Serves one job.  `run` once."""

    def __init__(
        self,
        channel: Channel,
        workshop: Workshop,
        stop: Stop,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._workshop = workshop
        self._stop = stop
        self._clock = clock
        self._pausing = False
        self._failed_at: Extent | None = None
        self._remaining: Remaining | None = None
        self._ordering: Ordering | None = None
        self._only = False  # nothing but what the user wants first, then pause
        self._asks_gate = False
        self._under_way: list[Extent] = []  # handed out, and not yet on record
        self._cells: dict[int, tuple[int, int]] = {}  # of this batch: sectors, and from the COW
        self._throttle: Throttle | None = None
        self._reading: Reading | None = None
        self._most = Sectors(0)  # of a batch
        self._batch_seconds = self._longest = _BATCH_SECONDS
        served = {
            "rate": self._set_rate,
            "pause": self._pause,
            "go": self._go,
            "held": self._hurry,
            "order": self._order,
            "look": self._look,
            "written": self._note_writes,
            "batch": self._set_batch,
            "tables": self._allow,
        }
        channel.serve(served)

    def run(self) -> int:
        """Serve until the job is complete or has failed; give the exit status.

        The destination is closed before control is told of the end.
        """
        try:
            with ExitStack() as stack:
                self._serve(stack)
            self._channel.send("complete")
        except Exception as exc:  # outermost loop of the process: control must be told
            if not isinstance(exc, DmcopyError | OSError):
                log.exception("the worker has a bug")
            kind = exc.kind if isinstance(exc, DmcopyError) else DmcopyError.kind
            text = str(exc) if isinstance(exc, DmcopyError | OSError) else repr(exc)
            at = self._failed_at.offset if self._failed_at is not None else None
            self._channel.send("failed", kind=kind, message=text, offset_bytes=at)
            return 1
        return 0

    def _serve(self, stack: ExitStack) -> None:
        request = OpenRequest.parse(self._expect("open"))
        session = stack.enter_context(self._workshop.open(request))
        size = to_bytes(min(request.segment, request.length))
        pool = stack.enter_context(BufferPool(BUFFERS, size))
        if not self._workshop.lock_memory():
            self._channel.send("warning", message="the worker's memory could not be locked")
        self._channel.send("ready", pid=os.getpid(), mark=dict(session.mark))
        message = self._expect("copy", "verify", "complete")
        if message["do"] == "copy":
            self._copy(request, message, session, pool)
            message = self._expect("verify", "complete")
        while message["do"] == "verify":
            self._verify(request, message, session, pool)
            message = self._expect("verify", "complete")
        session.complete()

    def _expect(self, *verbs: str) -> Message:
        request = self._channel.next()
        if request["do"] not in verbs:
            raise UsageError(
                f"the worker was asked to {request['do']}, not to {' or '.join(verbs)}"
            )
        return request

    def _copy(
        self, request: OpenRequest, message: Message, session: WorkSession, pool: BufferPool
    ) -> None:
        started = self._clock()
        wanted = CopyRequest.parse(message, request.length)
        self._remaining = remaining = Remaining(request.segments(), wanted.done)
        self._ordering = ordering = _ordering(wanted, remaining, self._clock)
        self._only, self._asks_gate = wanted.order.only, wanted.gate
        if wanted.paused:
            self._pausing = True
        pace = BatchPace(_BATCH_SECONDS) if wanted.short_batches else None
        copied = Runs(lambda: self._workshop.digest(request.digest))
        cell = cell_size(request.length, request.segment)
        session.keep()
        with (
            self._workshop.throttle(wanted) as throttle,
            self._workshop.read(wanted, ordering.saved) as reading,
        ):
            self._throttle, self._reading, self._most = throttle, reading, wanted.batch
            copier = Copier(
                reading.reader,
                session,
                pool,
                runs=copied,
                # with a gate the wait comes before it: nothing is held for the rate's sake
                throttle=None if wanted.gate else throttle,
                progress=lambda counts: self._channel.offer("progress", **_fields(counts, reading)),
                copied=lambda at, from_cow: self._note_copied(at, from_cow, cell),
                stop=self._stop,
                clock=self._clock,
            )
            while remaining:
                if self._wait_while_paused():
                    continue  # control may have asked for another order meanwhile
                if pace is not None:
                    self._batch_seconds = min(pace.seconds, self._longest)
                try:
                    counts = copier.copy(self._batch(remaining, throttle))
                finally:
                    self._failed_at = copier.failed_at
                runs, flushed = rows_of(copied.changed()), self._clock()
                self._channel.send(
                    "durable", rows=runs, cells=self._take_cells(cell), **_fields(counts, reading)
                )
                # Nothing more is written before it is on record: so an interruption costs
                # no more than one batch.  Proof: test_resume_costs_at_most_one_batch.
                self._expect("journaled")
                self._under_way = []
                if pace is not None:
                    now = self._clock()
                    pace.ended(copier.flush_seconds + now - flushed, now - started)
            self._reading = None
            fields = _fields(copier.counts, reading)
        self._channel.send("copied", **fields, seconds=self._clock() - started)

    def _note_copied(self, at: Extent, from_cow: Bytes, cell: Sectors) -> None:
        index = at.start // cell
        copied, saved = self._cells.get(index, (0, 0))
        self._cells[index] = copied + at.length, saved + sectors_down(from_cow)

    def _take_cells(self, cell: Sectors) -> list[tuple[int, int, int]]:
        """Give what this batch copied, by cells: start, sectors, and those from the COW device."""
        cells, self._cells = self._cells, {}
        return [(index * cell, *counts) for index, counts in sorted(cells.items())]

    # What control may ask at any time; served by the thread that listens.

    def _set_rate(self, message: Message) -> None:
        if self._throttle is not None:
            self._throttle.rate = _rate(message)

    def _pause(self, _message: Message) -> None:
        self._pausing = True

    def _go(self, message: Message) -> None:
        """End a pause.  In the order in which control says it: a pause behind it is a new one."""
        self._pausing = False
        self._channel.put(message)

    def _hurry(self, message: Message) -> None:
        if self._remaining is not None:
            self._remaining.prefer(extents_of(message["extents"]), Rank.HELD)

    def _order(self, message: Message) -> None:
        """Change the order, if something is asked for; tell what it is."""
        remaining, ordering = self._remaining, self._ordering
        if remaining is None or ordering is None:
            self._channel.send("order", next=[], left_sectors=0)
            return
        if "first" in message:
            ordering.first(extents_of(message["first"]))
            self._only = bool(message.get("only"))
        if "policy" in message:
            ordering.policy = Policy(message["policy"])
        ordering.tick(now=True)
        ahead = [extent for rank in Rank for extent in remaining.preferred(rank)]
        self._channel.send("order", next=ahead[:_MOST_TOLD], left_sectors=remaining.length)

    def _look(self, _message: Message) -> None:
        self._channel.send("look", batch=self._under_way[:_MOST_TOLD])

    def _note_writes(self, message: Message) -> None:
        if self._ordering is not None:
            self._ordering.written(counts_of(message["areas"]))

    def _set_batch(self, message: Message) -> None:
        self._most = min(self._most, Sectors(message["batch_sectors"]))
        self._batch_seconds = self._longest = float(message["seconds"])

    def _allow(self, message: Message) -> None:
        """Take other tables of the origin for ours; control waits for the answer."""
        if self._reading is not None:
            self._reading.allow(TablesRequest.parse(message))
        self._channel.send("tables")

    def _batch(self, remaining: Remaining, throttle: Throttle) -> Iterator[Extent]:
        """Give segments until a batch is full, some seconds are over, or a pause is wanted."""
        assert self._ordering is not None
        began, taken = self._clock(), 0
        while taken < self._most and not self._pausing:
            self._ordering.tick()
            at = remaining.take(rank=Rank.ASKED if self._only else None)
            if at is None:
                if self._only:  # all that was asked for; else all there is
                    self._pausing, self._only = True, False
                return
            if self._asks_gate:
                throttle.wait(at.size)
                self._channel.send("gate", start=at.start, length=at.length)
                self._expect("gated")
            self._under_way = merge([*self._under_way, at])
            yield at
            taken += at.length
            # asked each time: a batch that is under way is cut short as well
            if self._asks_gate or self._clock() - began >= self._batch_seconds:
                return

    def _wait_while_paused(self) -> bool:
        """Wait, if a pause is wanted, until control says ``go``; tell whether it was."""
        if not self._pausing:
            return False
        self._channel.send("paused")
        self._expect("go")
        return True

    def _verify(
        self, request: OpenRequest, message: Message, session: WorkSession, pool: BufferPool
    ) -> None:
        started = self._clock()

        def new_digest() -> Digest:
            made = self._workshop.digest(request.digest)
            if made is None:
                raise UsageError("without a digest there is nothing to verify by")
            return made

        def tell(done: Bytes) -> None:
            self._channel.offer("progress", phase="verify", bytes_done=done)

        verifier = Verifier(
            session, pool, new_digest, progress=tell, stop=self._stop, clock=self._clock
        )
        try:
            found = verifier.verify(runs_of(message["rows"]), request.segment)
        finally:
            self._failed_at = verifier.failed_at
        self._channel.send("verified", digest=found, seconds=self._clock() - started)


def _ordering(wanted: CopyRequest, remaining: Remaining, clock: Callable[[], float]) -> Ordering:
    order = wanted.order
    ordering = Ordering(
        remaining,
        length=wanted.length,
        area=order.area,
        chunk=wanted.cow.chunk if wanted.cow is not None else order.area,
        policy=order.policy,
        clock=clock,
    )
    ordering.first(order.first)
    if order.written:
        ordering.written(order.written)
    return ordering


def _rate(message: Message) -> Bytes | None:
    rate = message["rate_bytes"]
    return Bytes(rate) if rate else None


def _fields(counts: Counts, reading: Reading) -> dict[str, object]:
    used, total = reading.validator.cow or (None, None)
    return {
        "phase": "copy",
        **counts._asdict(),
        "exceptions": reading.view.count,
        "cow_used_sectors": used,
        "cow_total_sectors": total,
    }
