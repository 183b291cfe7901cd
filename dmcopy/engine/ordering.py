"""The order in which a worker copies: the user's wish, and a policy that looks at the writes.

What the writes are comes from control (the kernel's counters of the origin) and from the
exception store, which this process reads anyway.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Final

from dmcopy.core.extent import Extent
from dmcopy.core.order import Heat, Policy
from dmcopy.core.segment import Rank, Remaining
from dmcopy.units import Sectors

_LOOK_SECONDS: Final = 0.5


class Ordering:
    """Orders what *remaining* holds, for any thread."""

    def __init__(
        self,
        remaining: Remaining,
        *,
        length: Sectors,
        area: Sectors,
        chunk: Sectors,
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*length* of the image, in areas of *area*, saved by chunks of *chunk* sectors."""
        self._remaining = remaining
        self._length = length
        self._area = area
        self._chunk = chunk
        self._clock = clock
        self._lock = Lock()
        self._looked = -_LOOK_SECONDS
        self._writes = Heat(length, area)
        self._saved = Heat(length, area)
        self._counted = False
        self.policy = policy

    def first(self, extents: Iterable[Extent]) -> None:
        """Have *extents* copied before all that nobody waits for."""
        self._remaining.prefer(extents, Rank.ASKED)

    def written(self, counts: Iterable[tuple[int, int]]) -> None:
        """Note how often areas were written since the last time: number of the area, writes."""
        with self._lock:
            self._counted = True
            self._writes.add(self._clock(), dict(counts))

    def saved(self, chunks: Sequence[int]) -> None:
        """Note that *chunks* were saved since the last time."""
        counts = Counter(chunk * self._chunk // self._area for chunk in chunks)
        with self._lock:
            self._saved.add(self._clock(), counts)

    def tick(self, *, now: bool = False) -> None:
        """Look, twice a second or *now*, what is hot by now."""
        time_ = self._clock()
        if not now and time_ - self._looked < _LOOK_SECONDS:
            return
        self._looked = time_
        if self.policy is Policy.SEQUENTIAL:
            self._remaining.prefer((), Rank.HOT)
            return
        left = self._remaining.left
        with self._lock:
            # until somebody has counted writes, what was saved tells where they go
            by_writes = self.policy is Policy.HOT and self._counted
            clusters = (self._writes if by_writes else self._saved).clusters(left)
        self._remaining.prefer(clusters, Rank.HOT)
