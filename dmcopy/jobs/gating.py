"""``--gate segment`` at work: writes to the segment that is being copied wait until it is done.

A segment is gated before it is read, and let go when it is durable at the destination, on record,
and retired: a write that waited lands in a range that nobody will read again.  Each write waits
for a quarter of the hold limit at most; one that waited so long is saved first, as without a gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from dmcopy.core import events
from dmcopy.core.extent import Extent
from dmcopy.errors import DmcopyError, Interrupted, PointInTimeLost
from dmcopy.stack.brake import Brake
from dmcopy.units import Bytes

# Of the hold limit: many writes may wait one after the other, where a begin holds once.
GATE_SHARE: Final = 4


class Gating:
    """The gate of one copy; `end` in every case."""

    def __init__(
        self,
        job: str,
        brake: Brake,
        record: Callable[[], Sequence[Extent]],
        tell: Callable[[events.Segment], None],
        warn: Callable[[str], None],
        *,
        hold_limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*record* as for `jobs.retiring.Retiring`; *hold_limit* in seconds."""
        self._job = job
        self._record = record
        self._tell = tell
        self._warn = warn
        self._clock = clock
        self._milliseconds = max(int(hold_limit * 1000 / GATE_SHARE), 1)
        self._gated: Extent | None = None
        self._since = 0.0
        self._told: set[str] = set()
        self._retired: Sequence[Extent] = ()
        self.brake = brake

    @property
    def retired(self) -> Bytes:
        """How much passes the snapshot by."""
        return Bytes(sum(extent.size for extent in self._retired))

    @property
    def gated(self) -> tuple[Extent, float] | None:
        """The segment that is gated, and for how many seconds it has been."""
        return (self._gated, self._clock() - self._since) if self._gated is not None else None

    def start(self) -> None:
        """Put the devices in; nothing is held yet.  Raises what `Brake.on` raises."""
        self._retired = self._record()
        self.brake.on(self._milliseconds, self._retired, only=())

    def up(self, segment: Extent) -> None:
        """Hold writes to *segment*, which is about to be read."""
        if self._is_overruled:
            return
        try:
            self.brake.hold([segment])
        except (PointInTimeLost, Interrupted):
            raise
        except DmcopyError as exc:  # it is copied without: what is written is saved
            self._warn_once(f"a segment could not be gated: {exc}")
            return
        self._gated, self._since = segment, self._clock()

    def durable(self) -> None:
        """The segment is durable at the destination, and on record: let go."""
        if self._is_overruled:
            return
        writes = self.brake.count()
        self.brake.only = ()
        try:
            self._retired = self._record()
            self.brake.advance(self._retired)
        except (PointInTimeLost, Interrupted):
            raise
        except DmcopyError as exc:  # what waits goes on when its time is over, and is saved
            self._warn_once(f"a segment could not be let go, and waits for its time: {exc}")
        finally:
            self.brake.holds.clear()
        if self._gated is not None:
            segment, self._gated = self._gated, None
            self._tell(
                events.Segment(
                    job=self._job,
                    offset_bytes=segment.offset,
                    length_bytes=segment.size,
                    hold_seconds=self._clock() - self._since,
                    writes_held=writes,
                )
            )

    def end(self) -> None:
        """Hold nothing more; what is retired stays so.  Raises what `Brake.off` raises."""
        self._gated = None
        self.brake.off()

    @property
    def _is_overruled(self) -> bool:
        """Whether the brake is on: then everything that is not copied is held as it is."""
        return self.brake.only is None or not self.brake.is_on

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._warn(text)
