"""One thread fills buffers, others consume them: each buffer goes to every consumer.

The first error wins: it stops the others, every thread is joined, every buffer is given
back, and only then it is raised.  Nothing here knows what is in a buffer.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, TypeAlias

from dmcopy.core.extent import Extent
from dmcopy.engine.buffers import Buffer, BufferPool
from dmcopy.engine.interval import Interval
from dmcopy.errors import Interrupted
from dmcopy.kernel.cpu import idle_seconds

_LOOK_SECONDS: Final = 0.25  # a CPU clock may tick a hundred times a second only
_IDLE: Final = 0.3  # of the time: then a device works while the CPU does not

Work: TypeAlias = Callable[[Extent, Buffer], None]


class Stop:
    """Asks the threads of a worker to stop; may be set by a signal handler."""

    def __init__(self) -> None:
        # a plain attribute: an Event takes a lock, which a signal handler must not
        self.why = ""

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        return self.why != ""

    def set(self, why: str) -> None:
        """Ask to stop; the first *why* is the one that is told."""
        self.why = self.why or why

    def check(self) -> None:
        """Raise `Interrupted` when asked to stop."""
        if self.is_set:
            raise Interrupted(self.why)


class _Filled:
    """A buffer on its way through the consumers."""

    def __init__(self, at: Extent, buffer: Buffer, users: int) -> None:
        self.at = at
        self.buffer = buffer
        self.users = users


class Pipeline:
    """Runs one pass over some extents; may be used again after it.

    With one CPU, threads pay only where a device works while the CPU does not: so there a
    pass begins without them, and they come in as soon as the CPU is seen to be idle.
    """

    def __init__(self, pool: BufferPool, stop: Stop, *, cpus: int | None = None) -> None:
        """Work with the buffers of *pool*; *stop* ends a run within one piece of work."""
        self._pool: Final = pool
        self._cpus: Final = len(os.sched_getaffinity(0)) if cpus is None else cpus
        self._stop: Final = stop
        self._lock: Final = threading.Lock()
        self._error: BaseException | None = None
        self.failed_at: Extent | None = None  # which extent the first error met

    def run(self, extents: Iterable[Extent], fill: Work, consumers: Sequence[Work]) -> None:
        """Fill a buffer for each extent, in order, and hand it to all *consumers*.

        *fill* runs in the calling thread, each consumer in a thread of its own that sees the
        extents in order.  Raises the first error of any of them, `Interrupted` when it was
        asked to stop.
        """
        self._error = self.failed_at = None
        waiting = iter(extents)
        if self._cpus == 1:
            self._run_alone(waiting, fill, consumers, until_idle=True)
        if self._error is None:
            self._run_threads(waiting, fill, consumers)
        if self._error is None:
            self._stop.check()  # what came last may have been dropped
            return
        error, self._error = self._error, None
        raise error

    def _run_alone(
        self, extents: Iterator[Extent], fill: Work, consumers: Sequence[Work], *, until_idle: bool
    ) -> None:
        """Do all in the calling thread; *until_idle*: for as long as the CPU is the limit."""
        buffer = self._pool.take()
        at: Extent | None = None
        look, idle = Interval(_LOOK_SECONDS), idle_seconds()
        try:
            for at in extents:
                self._stop.check()
                fill(at, buffer)
                for consume in consumers:
                    consume(at, buffer)
                if until_idle and look.due():
                    # the CPU's own time, not ours: an application that takes half of it
                    # leaves nothing for a second thread either
                    before, idle = idle, idle_seconds()
                    if idle - before > _IDLE * look.elapsed:
                        return
        except BaseException as exc:  # raised again by run
            self.fail(exc, at)
        finally:
            self._pool.give(buffer)

    def _run_threads(
        self, extents: Iterator[Extent], fill: Work, consumers: Sequence[Work]
    ) -> None:
        first = next(extents, None)
        if first is None:
            return
        extents = chain((first,), extents)
        lanes = [_Lane(self, consume) for consume in consumers]
        try:
            try:
                for lane in lanes:
                    lane.start()
            except RuntimeError:  # a limit of processes or memory: slower, but no reason to end
                self._run_alone(extents, fill, consumers, until_idle=False)
            for at in extents:
                if self._error is not None:
                    break
                self._stop.check()
                self._fill(at, fill, lanes)
        except BaseException as exc:  # raised again by run, once the threads are joined
            self.fail(exc, None)
        finally:
            for lane in lanes:
                lane.end()

    def _fill(self, at: Extent, fill: Work, lanes: Sequence[_Lane]) -> None:
        # Never waits for ever: a lane gives buffers back also when it no longer works.
        buffer = self._pool.take()
        try:
            fill(at, buffer)
        except BaseException as exc:
            self._pool.give(buffer)
            self.fail(exc, at)
            return
        filled = _Filled(at, buffer, len(lanes))
        for lane in lanes:
            lane.put(filled)

    @property
    def is_over(self) -> bool:
        """Whether what is still on its way shall be dropped."""
        return self._error is not None or self._stop.is_set

    def fail(self, error: BaseException, at: Extent | None) -> None:
        """Note *error*, unless there was one before."""
        with self._lock:
            if self._error is None:
                self._error, self.failed_at = error, at

    def done(self, filled: _Filled) -> None:
        """Note that one consumer needs the buffer no more; the last one gives it back."""
        with self._lock:
            filled.users -= 1
            if filled.users:
                return
        self._pool.give(filled.buffer)


class _Lane:
    """One consumer, its thread and its queue (never longer than the pool)."""

    def __init__(self, pipeline: Pipeline, consume: Work) -> None:
        self._pipeline = pipeline
        self._consume = consume
        self._queue: queue.SimpleQueue[_Filled | None] = queue.SimpleQueue()
        name = getattr(consume, "__name__", "consume")
        self._thread = threading.Thread(target=self._run, name=f"dmcopy-{name}")
        self._started = False

    def start(self) -> None:
        self._thread.start()
        self._started = True

    def put(self, filled: _Filled) -> None:
        self._queue.put(filled)

    def end(self) -> None:
        """Let what is queued be worked off, and wait for it."""
        self._queue.put(None)
        if self._started:
            self._thread.join()

    def _run(self) -> None:
        while (filled := self._queue.get()) is not None:
            try:
                if not self._pipeline.is_over:
                    self._consume(filled.at, filled.buffer)
            except BaseException as exc:  # handed to the thread that called run
                self._pipeline.fail(exc, filled.at)
            finally:
                self._pipeline.done(filled)
