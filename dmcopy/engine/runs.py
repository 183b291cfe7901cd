"""What was copied, as runs: extents of the image that were copied in one go, with digests.

A copy in the order of the image is one run, however long it is; where the order jumps, or
a job goes on after an interruption, another begins.  So the digest of everything that is
durable can be kept in a few rows, and a run's digest never needs its data a second time.

One thread calls `add`; `changed` is called when that has ended a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from dmcopy.core.extent import Extent
from dmcopy.units import Sectors

_MOST_OPEN: Final = 64  # runs that may still grow, each with a hash of its own


class Digest(Protocol):
    """A running hash (hashlib)."""

    def update(self, data: memoryview, /) -> None:
        """Add *data*."""

    def hexdigest(self) -> str:
        """Give the hash of everything added."""


class Run(NamedTuple):
    """An extent that was copied in order; *digest* of all of it, None where none is made."""

    extent: Extent
    digest: str | None


class _Open:
    """A run that may still grow."""

    def __init__(self, start: Sectors, digest: Digest | None) -> None:
        self.start = start
        self.end = start
        self.digest = digest
        self.changed = False

    def run(self) -> Run:
        digest = self.digest.hexdigest() if self.digest is not None else None
        return Run(Extent.between(self.start, self.end), digest)


class Runs:
    """The runs of one session of a copy."""

    def __init__(self, digest: Callable[[], Digest | None]) -> None:
        """*digest* gives a new hash, None when none is wanted."""
        self._digest = digest
        self._open: dict[Sectors, _Open] = {}  # by where they end
        self._closed: list[Run] = []

    def add(self, at: Extent, data: memoryview) -> None:
        """Note that *at* was copied, and held *data*."""
        run = self._open.pop(at.start, None)
        if run is None:
            run = _Open(at.start, self._digest())
        if run.digest is not None:
            run.digest.update(data)  # hashlib lets go of the GIL
        run.end = at.end
        run.changed = True
        self._open[run.end] = run
        if len(self._open) > _MOST_OPEN:
            oldest = self._open.pop(next(iter(self._open)))
            if oldest.changed:
                self._closed.append(oldest.run())

    def changed(self) -> list[Run]:
        """Give the runs that began or grew since the last time."""
        found, self._closed = self._closed, []
        for run in self._open.values():
            if run.changed:
                found.append(run.run())
                run.changed = False
        return found
