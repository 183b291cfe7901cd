"""The worker's service: one job from ``open`` to ``complete``.

Requests: ``open``, ``copy``, perhaps ``verify``, then ``complete``.  While it copies:
``rate``, ``pause``, ``first`` (what to copy before all else), ``batch`` (how large one is) and
``tables`` (what the origin may have from now on; answered), served at once.

After each batch it says ``durable`` and goes on when control answers ``journaled``; when it was
asked to pause it says ``paused`` and waits for ``go``.  It ends early, with everything closed,
when its stdin closes or a SIGTERM comes.

What it works with (which destination, which devices) is handed in as a `Workshop`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Final, NamedTuple, Protocol

from dmcopy.core.extent import Extent
from dmcopy.core.segment import Remaining
from dmcopy.engine.buffers import BufferPool
from dmcopy.engine.channel import Channel
from dmcopy.engine.copier import Copier, Counts, SegmentReader, Sink
from dmcopy.engine.exceptions_view import ExceptionView
from dmcopy.engine.pipeline import Stop
from dmcopy.engine.request import (
    CopyRequest,
    Message,
    OpenRequest,
    TablesRequest,
    extents_of,
    rows_of,
    runs_of,
)
from dmcopy.engine.runs import Digest, Runs
from dmcopy.engine.validate import Validator
from dmcopy.engine.verify import Readable, Verifier
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.units import Bytes, Sectors, to_bytes

log = logging.getLogger(__name__)

BUFFERS: Final = 4  # one is read, one written and hashed, two wait where the speeds differ
_BATCH_SECONDS: Final = 5.0  # so much work an interruption costs at most, or a batch


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

    def read(self, request: CopyRequest) -> AbstractContextManager[Reading]:
        """Open what is to be read."""

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
        self._throttle: Throttle | None = None
        self._reading: Reading | None = None
        self._most = Sectors(0)  # of a batch
        self._batch_seconds = _BATCH_SECONDS
        served = {
            "rate": self._set_rate,
            "pause": self._pause,
            "first": self._prefer,
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
        copied = Runs(lambda: self._workshop.digest(request.digest))
        session.keep()
        with self._workshop.throttle(wanted) as throttle, self._workshop.read(wanted) as reading:
            self._throttle, self._reading, self._most = throttle, reading, wanted.batch
            copier = Copier(
                reading.reader,
                session,
                pool,
                runs=copied,
                throttle=throttle,
                progress=lambda counts: self._channel.offer("progress", **_fields(counts, reading)),
                stop=self._stop,
                clock=self._clock,
            )
            while remaining:
                try:
                    counts = copier.copy(self._batch(remaining))
                finally:
                    self._failed_at = copier.failed_at
                runs = rows_of(copied.changed())
                self._channel.send("durable", rows=runs, **_fields(counts, reading))
                # Nothing more is written before it is on record: so an interruption costs
                # no more than one batch.  Proof: test_resume_costs_at_most_one_batch.
                self._expect("journaled")
                self._wait_while_paused()
            self._reading = None
            fields = _fields(copier.counts, reading)
        self._channel.send("copied", **fields, seconds=self._clock() - started)

    # What control may ask at any time; served by the thread that listens.

    def _set_rate(self, message: Message) -> None:
        if self._throttle is not None:
            self._throttle.rate = _rate(message)

    def _pause(self, _message: Message) -> None:
        self._pausing = True

    def _prefer(self, message: Message) -> None:
        if self._remaining is not None:
            self._remaining.prefer(extents_of(message["extents"]))

    def _set_batch(self, message: Message) -> None:
        self._most = min(self._most, Sectors(message["batch_sectors"]))
        self._batch_seconds = float(message["seconds"])

    def _allow(self, message: Message) -> None:
        """Take other tables of the origin for ours; control waits for the answer."""
        if self._reading is not None:
            self._reading.allow(TablesRequest.parse(message))
        self._channel.send("tables")

    def _batch(self, remaining: Remaining) -> Iterator[Extent]:
        """Give segments until a batch is full, some seconds are over, or a pause is wanted."""
        began, taken = self._clock(), 0
        while taken < self._most and not self._pausing and (at := remaining.take()) is not None:
            yield at
            taken += at.length
            # asked each time: a batch that is under way is cut short as well
            if self._clock() - began >= self._batch_seconds:
                return

    def _wait_while_paused(self) -> None:
        if self._pausing:
            self._channel.send("paused")
            self._expect("go")
            self._pausing = False

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
