"""The worker's service loop: requests in, messages out, a JSON object a line both ways.

One worker serves one job and ends with it: ``open``, ``copy``, perhaps ``verify``, then
``complete``.  It ends early, with everything closed, when its stdin closes or a SIGTERM comes.
What it works with (which destination, which devices) is handed in as a `Workshop`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from dmcopy.core.extent import Extent
from dmcopy.core.segment import SegmentList
from dmcopy.engine.buffers import BufferPool
from dmcopy.engine.copier import Copier, Counts, Digest, SegmentReader, Sink
from dmcopy.engine.exceptions_view import ExceptionView
from dmcopy.engine.pipeline import Stop
from dmcopy.engine.validate import Validator
from dmcopy.engine.verify import Readable, Verifier
from dmcopy.errors import DmcopyError, Interrupted, UsageError
from dmcopy.units import Bytes, Sectors, to_bytes

log = logging.getLogger(__name__)

Message: TypeAlias = Mapping[str, Any]  # Any: JSON

BUFFERS: Final = 4  # one is read, one written and hashed, two wait where the speeds differ


class WorkSession(Sink, Readable, Protocol):
    """An open destination (destinations.base.Session)."""

    def complete(self) -> None:
        """Say that the image is whole."""


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """What ``open`` says."""

    job: str
    source: str  # path, for messages
    source_devno: str
    length: Sectors
    segment: Sectors
    digest: str  # sha256 | none
    destination: str
    overwrite_signature: bool
    spare: tuple[str, ...]
    identity: Mapping[str, str | int] | None  # as recorded by an earlier open

    @classmethod
    def parse(cls, message: Message) -> OpenRequest:
        """Take a request apart; raises KeyError for a missing word: a bug of control's."""
        return cls(
            job=message["job"],
            source=message["source"],
            source_devno=message["source_devno"],
            length=Sectors(message["length_sectors"]),
            segment=Sectors(message["segment_sectors"]),
            digest=message["digest"],
            destination=message["destination"],
            overwrite_signature=message.get("overwrite_signature", False),
            spare=tuple(message.get("spare", ())),
            identity=message.get("identity"),
        )

    def segments(self) -> SegmentList:
        """Give the segments, in the order of the image."""
        return SegmentList(self.length, self.segment)


@dataclass(frozen=True, kw_only=True)
class CowRequest:
    """Where the exception store is, and what tells that it is still good."""

    path: str
    chunk: Sectors
    snapshot_uuid: str
    origin_devno: str
    origin_table: bytes


@dataclass(frozen=True, kw_only=True)
class CopyRequest:
    """What ``copy`` says; without *cow* the source is idle: *devno* had *writes* at begin."""

    source_path: str
    length: Sectors
    cow: CowRequest | None
    devno: str = ""
    writes: int = 0

    @classmethod
    def parse(cls, message: Message, length: Sectors) -> CopyRequest:
        """Take a request apart; raises KeyError for a missing word."""
        cow = message.get("cow")
        if cow is None:
            idle = message["idle"]
            return cls(
                source_path=message["source_path"],
                length=length,
                cow=None,
                devno=idle["devno"],
                writes=idle["writes"],
            )
        return cls(
            source_path=message["source_path"],
            length=length,
            cow=CowRequest(
                path=cow["path"],
                chunk=Sectors(cow["chunk_sectors"]),
                snapshot_uuid=cow["snapshot_uuid"],
                origin_devno=cow["origin_devno"],
                origin_table=cow["origin_table"].encode(),
            ),
        )


class Reading(NamedTuple):
    """How a source is read."""

    reader: SegmentReader
    view: ExceptionView
    validator: Validator


class Workshop(Protocol):
    """What the service works with; jobs.worker has the real one."""

    def open(self, request: OpenRequest) -> AbstractContextManager[WorkSession]:
        """Open the destination and hold it."""

    def read(self, request: CopyRequest) -> AbstractContextManager[Reading]:
        """Open what is to be read."""

    def digest(self, name: str) -> Digest | None:
        """Give a new digest, None for ``none``."""

    def lock_memory(self) -> bool:
        """Keep the process in RAM; tell whether it worked."""


class Channel:
    """The two pipes to control.  Any thread may send."""

    def __init__(self, requests: int, messages: int, stop: Stop) -> None:
        """Read from the fd *requests*, write to *messages*; both stay the caller's."""
        self._in = requests
        self._out = messages
        self._stop = stop
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to read, in a thread of its own: the end of stdin stops a copy."""
        # A daemon: it sits in read(2) until control closes the pipe, perhaps after our end.
        threading.Thread(target=self._listen, name="dmcopy-requests", daemon=True).start()

    def _listen(self) -> None:
        buffer = b""
        while data := os.read(self._in, 1 << 16):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._queue.put(json.loads(line))
        self.stop("control went away")

    def stop(self, why: str) -> None:
        """Ask the worker to stop; may be called by a signal handler."""
        self._stop.set(why)
        self._queue.put(None)  # SimpleQueue.put is reentrant

    def next(self) -> Message:
        """Give the next request; raises `Interrupted` when there will be none."""
        request = self._queue.get()
        if request is None:
            raise Interrupted(self._stop.why)
        return request

    def send(self, what: str, **fields: object) -> None:
        """Send a message; that control is gone shows at stdin."""
        line = json.dumps({"is": what, **fields}).encode() + b"\n"
        with self._lock, suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._out, line) :]

    def offer(self, what: str, **fields: object) -> None:
        """Send a message unless nobody takes it: a stopped control must not stop the copy."""
        # A pipe that is writable takes PIPE_BUF bytes (pipe(7)), which is more than a line.
        if select.select([], [self._out], [], 0)[1]:
            self.send(what, **fields)


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
        self._digest: str | None = None
        self._failed_at: Extent | None = None

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
        self._channel.send("ready", pid=os.getpid())
        self._copy(request, self._expect("copy"), session, pool)
        while self._expect("verify", "complete")["do"] == "verify":
            self._verify(request, session, pool)
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
        digest = self._workshop.digest(request.digest)
        with self._workshop.read(CopyRequest.parse(message, request.length)) as reading:
            copier = Copier(
                reading.reader,
                session,
                pool,
                digest=digest,
                progress=lambda counts: self._channel.offer("progress", **_fields(counts, reading)),
                stop=self._stop,
                clock=self._clock,
            )
            try:
                counts = copier.copy(request.segments())
            finally:
                self._failed_at = copier.failed_at
            fields = _fields(counts, reading)
        self._digest = digest.hexdigest() if digest is not None else None
        seconds = self._clock() - started
        self._channel.send("copied", **fields, digest=self._digest, seconds=seconds)

    def _verify(self, request: OpenRequest, session: WorkSession, pool: BufferPool) -> None:
        started = self._clock()
        digest = self._workshop.digest(request.digest)
        if digest is None or self._digest is None:
            raise UsageError("without a digest there is nothing to verify by")

        def tell(done: Bytes) -> None:
            self._channel.offer("progress", phase="verify", bytes_done=done)

        verifier = Verifier(
            session, pool, digest, progress=tell, stop=self._stop, clock=self._clock
        )
        try:
            found = verifier.verify(request.segments(), self._digest)
        finally:
            self._failed_at = verifier.failed_at
        self._channel.send("verified", digest=found, seconds=self._clock() - started)


def _fields(counts: Counts, reading: Reading) -> dict[str, object]:
    used, total = reading.validator.cow or (None, None)
    return {
        "phase": "copy",
        **counts._asdict(),
        "exceptions": reading.view.count,
        "cow_used_sectors": used,
        "cow_total_sectors": total,
    }
