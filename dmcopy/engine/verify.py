"""Reads a destination back past the page cache, and compares it with what was copied."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from dmcopy.core.extent import Extent
from dmcopy.engine.buffers import Buffer, BufferPool
from dmcopy.engine.interval import PROGRESS_SECONDS, Interval
from dmcopy.engine.pipeline import Pipeline, Stop, Work
from dmcopy.engine.runs import Digest, Run
from dmcopy.errors import VerifyFailed
from dmcopy.units import Bytes, Sectors


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
        digest: Callable[[], Digest],
        *,
        progress: Callable[[Bytes], None] = lambda done: None,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpus: int | None = None,
    ) -> None:
        """Read from *session* into the buffers of *pool*; *digest* gives a new one."""
        self._session = session
        self._new_digest = digest
        self._progress = progress
        self._tell = Interval(PROGRESS_SECONDS, clock)
        self._pipeline = Pipeline(pool, stop if stop is not None else Stop(), cpus=cpus)
        self._done = 0

    @property
    def failed_at(self) -> Extent | None:
        """Which segment the error met that `verify` raised, if it met one."""
        return self._pipeline.failed_at

    def verify(self, runs: Sequence[Run], segment: Sectors) -> str:
        """Read *runs*, which are the whole image in its order; give the image's digest.

        Reads pieces of at most *segment*.  Raises `VerifyFailed` where a run's digest is
        not what was found.
        """
        whole = self._new_digest() if len(runs) > 1 else None
        found = ""
        for run in runs:
            digest = self._new_digest()
            self._pipeline.run(
                run.extent.split(segment, align=segment), self._read, [self._hash(digest, whole)]
            )
            found = digest.hexdigest()
            if found != run.digest:
                at = run.extent
                where = f" from {at.offset} to {at.offset + at.size}" if whole is not None else ""
                raise VerifyFailed(
                    f"the destination is not what was copied: its digest{where} is {found}, "
                    f"not {run.digest}"
                )
        self._progress(Bytes(self._done))
        return whole.hexdigest() if whole is not None else found

    def _read(self, at: Extent, buffer: Buffer) -> None:
        self._session.read(at, buffer.view[: at.size])

    def _hash(self, digest: Digest, whole: Digest | None) -> Work:
        def hash_(at: Extent, buffer: Buffer) -> None:
            digest.update(buffer.view[: at.size])
            if whole is not None:
                whole.update(buffer.view[: at.size])
            self._done += at.size
            if self._tell.due():
                self._progress(Bytes(self._done))

        return hash_
