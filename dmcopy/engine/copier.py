"""Copies segments as they were at begin time: the protocol, and the threads around it.

The protocol is `SegmentReader.read`, five lines whose order is the whole point.  `Copier` is
the way from there to the destination: one thread reads, one writes, one hashes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from dmcopy.core.extent import Extent
from dmcopy.engine.buffers import Buffer, BufferPool
from dmcopy.engine.exceptions_view import ExceptionView
from dmcopy.engine.interval import PROGRESS_SECONDS, Interval
from dmcopy.engine.pipeline import Pipeline, Stop, Work
from dmcopy.engine.runs import Runs
from dmcopy.engine.validate import Validator
from dmcopy.errors import SourceFailed
from dmcopy.kernel.blkdev import pread_full
from dmcopy.units import Bytes, Sectors


class Source(Protocol):
    """The device under the origin."""

    def read(self, at: Extent, into: memoryview) -> None:
        """Fill *into*; raises `SourceFailed`."""


class Sink(Protocol):
    """Where segments go; a destinations.base.Session is one."""

    def write(self, at: Extent, data: memoryview) -> None:
        """Write all of *data*."""

    def zero(self, at: Extent) -> None:
        """Make the range read as zeroes."""

    def flush(self) -> None:
        """Make everything durable."""


class DirectSource:
    """A device that is open for O_DIRECT reads; the fd is the caller's."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def read(self, at: Extent, into: memoryview) -> None:
        """Read once: what the device cannot read is an error, not something to try again."""
        try:
            pread_full(self._fd, into, at.offset)
        except OSError as exc:
            raise SourceFailed(
                f"cannot read {self._path}, {at.size} bytes at {at.offset}: {exc.strerror}"
            ) from exc


class SegmentReader:
    """Reads a segment as it was at begin time (DESIGN.md 3)."""

    def __init__(self, source: Source, view: ExceptionView, validator: Validator) -> None:
        self._source = source
        self._view = view
        self._validator = validator

    def read(self, at: Extent, into: memoryview) -> Bytes:
        """Fill *into*; give how much of it came from the COW device.

        *into* is page aligned and exactly the extent's size; *at* starts at a multiple of
        the chunk size.  Raises `PointInTimeLost`, `SourceFailed`; then *into* is worthless.
        """
        self._source.read(at, into)
        # The kernel commits an exception to the COW device before it releases the origin's
        # write (dm-snap-persistent.c:persistent_commit_exception, FUA; the held bios go on
        # from its callback).  So a chunk that the read above met overwritten, before it or
        # while it ran, is in the store by now, and a chunk that is not in the store now was
        # original during all of the read.  Looking first would miss what was saved between.
        # Proof: test_chunk_written_during_read_is_taken_from_cow, and
        # test_table_before_data_broken_gives_wrong_segments.
        self._view.refresh()
        # Both sentences hold for a valid snapshot under our own table only, and the kernel
        # takes either away *before* it lets an unsaved write through.  So asking after the
        # refresh covers the read and the refresh.  Proofs: see validate.py.
        self._validator.check()
        # What was saved stays where it is, for the store only grows: when the overlay is
        # read does not matter, and a snapshot that turns invalid only now loses nothing.
        # Proof: test_overflow_under_load_never_gives_a_wrong_segment.
        return self._view.patch(at, into)

    def finish(self) -> None:
        """Look a last time, when all segments were read and are durable."""
        self._validator.finish()


class Throttle(Protocol):
    """Keeps the rate of a copy down; an engine.throttle.Throttle is one."""

    def wait(self, size: int) -> None:
        """Return when *size* bytes may be read."""


class Counts(NamedTuple):
    """How far a copy is; bytes_source + bytes_cow = bytes_done."""

    bytes_done: Bytes
    bytes_source: Bytes
    bytes_cow: Bytes
    bytes_zero: Bytes  # of bytes_done


class Copier:
    """Copies the segments of one image, in the order in which they are given."""

    def __init__(
        self,
        reader: SegmentReader,
        sink: Sink,
        pool: BufferPool,
        *,
        runs: Runs | None = None,
        throttle: Throttle | None = None,
        progress: Callable[[Counts], None] = lambda counts: None,
        copied: Callable[[Extent, Bytes], None] = lambda at, from_cow: None,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpus: int | None = None,
    ) -> None:
        """Read with *reader*, write to *sink* through the buffers of *pool*.

        *runs* notes, in a thread of its own, what was read, *throttle* holds the reading
        back.  *progress* is called about five times a second, *copied* for each segment with
        how much of it came from the COW device; both by the thread that writes, and neither
        may raise.
        """
        self._reader = reader
        self._sink = sink
        self._runs = runs
        self._throttle = throttle
        self._progress = progress
        self._copied = copied
        self._clock = clock
        self.flush_seconds = 0.0  # that the last batch's flush took
        self._tell = Interval(PROGRESS_SECONDS, clock)
        self._pipeline = Pipeline(pool, stop if stop is not None else Stop(), cpus=cpus)
        # read and from_cow belong to the reading thread, the others to the writing one
        self._from_cow: dict[Sectors, Bytes] = {}
        self._done = self._cow = self._zero = 0

    @property
    def counts(self) -> Counts:
        """How far the copy is: what the destination has taken."""
        return Counts(
            Bytes(self._done), Bytes(self._done - self._cow), Bytes(self._cow), Bytes(self._zero)
        )

    @property
    def failed_at(self) -> Extent | None:
        """Which segment the error met that `copy` raised, if it met one."""
        return self._pipeline.failed_at

    def copy(self, segments: Iterable[Extent]) -> Counts:
        """Copy all *segments* and flush; when it returns, all is durable.

        May be called again, for the next batch.  Raises the first error of any thread,
        `Interrupted` when asked to stop; then no thread is left, and what the destination
        holds of these segments is worthless.
        """
        consumers: list[Work] = [self._write] if self._runs is None else [self._write, self._note]
        self._pipeline.run(segments, self._read, consumers)
        started = self._clock()
        self._sink.flush()
        self.flush_seconds = self._clock() - started
        self._reader.finish()
        self._progress(self.counts)
        return self.counts

    def _read(self, at: Extent, buffer: Buffer) -> None:
        if self._throttle is not None:
            self._throttle.wait(at.size)
        self._from_cow[at.start] = self._reader.read(at, buffer.view[: at.size])

    def _note(self, at: Extent, buffer: Buffer) -> None:
        assert self._runs is not None
        self._runs.add(at, buffer.view[: at.size])

    def _write(self, at: Extent, buffer: Buffer) -> None:
        if buffer.is_zero(at.size):
            self._sink.zero(at)
            self._zero += at.size
        else:
            self._sink.write(at, buffer.view[: at.size])
        from_cow = self._from_cow.pop(at.start)
        self._cow += from_cow
        self._done += at.size
        self._copied(at, from_cow)
        if self._tell.due():
            self._progress(self.counts)
