"""Reads a destination back past the page cache, and compares it with what was copied."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from dmcopy.core.extent import Extent
from dmcopy.engine.buffers import Buffer, BufferPool
from dmcopy.engine.copier import Digest
from dmcopy.engine.interval import PROGRESS_SECONDS, Interval
from dmcopy.engine.pipeline import Pipeline, Stop
from dmcopy.errors import VerifyFailed
from dmcopy.units import Bytes


class Readable(Protocol):
    """What can be read back; a destinations.base.Session is one."""

    def read(self, at: Extent, into: memoryview) -> None:
        """Read from the medium; raises `DestinationFailed`."""


class Verifier:
    """One thread reads ahead, another hashes."""

    def __init__(
        self,
        session: Readable,
        pool: BufferPool,
        digest: Digest,
        *,
        progress: Callable[[Bytes], None] = lambda done: None,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpus: int | None = None,
    ) -> None:
        """Read from *session* into the buffers of *pool*; *digest* is a new one."""
        self._session = session
        self._digest = digest
        self._progress = progress
        self._tell = Interval(PROGRESS_SECONDS, clock)
        self._pipeline = Pipeline(pool, stop if stop is not None else Stop(), cpus=cpus)
        self._done = 0

    @property
    def failed_at(self) -> Extent | None:
        """Which segment the error met that `verify` raised, if it met one."""
        return self._pipeline.failed_at

    def verify(self, segments: Iterable[Extent], expected: str) -> str:
        """Read *segments*, which are the image in its order; give the digest.

        Raises `VerifyFailed` when it is not *expected*.
        """
        self._pipeline.run(segments, self._read, [self._hash])
        self._progress(Bytes(self._done))
        found = self._digest.hexdigest()
        if found != expected:
            raise VerifyFailed(
                f"the destination is not what was copied: its digest is {found}, not {expected}"
            )
        return found

    def _read(self, at: Extent, buffer: Buffer) -> None:
        self._session.read(at, buffer.view[: at.size])

    def _hash(self, at: Extent, buffer: Buffer) -> None:
        self._digest.update(buffer.view[: at.size])
        self._done += at.size
        if self._tell.due():
            self._progress(Bytes(self._done))
