"""How far a job is and how it went: the worker's counts, over all sessions, as events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

from dmcopy.core import events
from dmcopy.core.durations import Durations
from dmcopy.core.forecast import Band, Forecast, Outlook
from dmcopy.core.holds import Holds
from dmcopy.jobs.link import Message
from dmcopy.jobs.prepare import Prepared
from dmcopy.units import Bytes, Sectors, to_bytes

_COUNTED: Final = ("bytes_source", "bytes_cow", "bytes_zero")


class Account:
    """Keeps count of one job; the events are complete but for how it ended."""

    def __init__(self, prepared: Prepared, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._prepared = prepared
        self._clock = clock
        self._started = clock()
        earlier = prepared.earlier
        done = earlier.done if earlier is not None else ()
        self._earlier = Bytes(sum(row.extent.size for row in done))  # by earlier sessions
        self._before = dict(earlier.counts) if earlier is not None else {}
        self._counts: dict[str, Any] = {}  # the worker's latest; Any: JSON
        self._rate = _Rate(clock)
        self._forecast = Forecast()  # where nobody watches a COW device
        self._outlook: Outlook | None = None
        self._cow: tuple[Bytes, Bytes] | None = None
        self.begin_time = earlier.begun.begin_time if earlier is not None else None
        self.holds = list(earlier.begun.hold_seconds) if earlier is not None else []
        self.held = Holds()  # all of this session, those below too
        self.copy_seconds: float | None = None
        self.digest: str | None = None
        self.verified = False
        self.retired = Bytes(0)
        self.retires = Durations()
        self.gates = Durations()
        self.gate_writes = 0
        self.md: tuple[dict[str, Any], ...] = ()  # of the arrays under the source; Any: JSON

    @property
    def total(self) -> Bytes:
        """The size of the image."""
        return to_bytes(self._prepared.source.length)

    @property
    def done(self) -> Bytes:
        """How much is at the destination, by all sessions."""
        return Bytes(self._earlier + int(self._counts.get("bytes_done", 0)))

    def counted(self, name: str) -> int:
        """Give a count over all sessions."""
        return int(self._counts.get(name, 0)) + int(self._before.get(name, 0))

    def counts(self) -> dict[str, int]:
        """Give what the next session, if there is one, must know."""
        return {name: self.counted(name) for name in _COUNTED}

    @property
    def cow(self) -> tuple[Bytes, Bytes] | None:
        """How much of the COW device was in use when last looked at, and its size."""
        return self._cow

    def watched(self, cow: tuple[Bytes, Bytes] | None, outlook: Outlook | None) -> None:
        """Take what is known of the COW device, and what is to be expected of it."""
        self._cow = cow if cow is not None else self._cow
        self._outlook = outlook

    def progress(self, message: Message) -> events.Progress:
        """Take the worker's counts; give the event."""
        phase = str(message.get("phase", "copy"))
        done = int(message["bytes_done"])
        if phase == "copy":
            self._counts = dict(message)
            done += self._earlier
            self._look_ahead(Bytes(done))
        copying = phase == "copy"
        used, size = (copying and self._cow) or (None, None)
        outlook = self._outlook if copying else None
        total = self.total
        rate = self._rate.after(phase, done)
        return events.Progress(
            job=self._prepared.spec.name,
            phase=phase,
            bytes_done=done,
            bytes_total=total,
            bytes_cow=self.counted("bytes_cow"),
            bytes_zero=self.counted("bytes_zero"),
            rate_bytes=rate,
            eta_seconds=(total - done) / rate if rate else None,
            exceptions=int(self._counts.get("exceptions", 0)),
            cow_used_bytes=used,
            cow_total_bytes=size,
            cow_full_seconds=outlook.full.likely if outlook and outlook.full else None,
            cow_full=_finite(outlook.full) if outlook else None,
            copy_done=_finite(outlook.done) if outlook else None,
            cow_needed=_finite(outlook.needed) if outlook else None,
            first=outlook.first if outlook else None,
            bytes_retired=self.retired,
            held=self.held.as_json(),
        )

    def _look_ahead(self, done: Bytes) -> None:
        used, size = (self._counts.get(f"cow_{what}_sectors") for what in ("used", "total"))
        if used is not None and size is not None:
            self._cow = to_bytes(Sectors(used)), to_bytes(Sectors(size))
        else:
            self._forecast.add(self._clock(), used=None, done=done)
            self._outlook = self._forecast.outlook(total=None, size=self.total)

    def ended(
        self,
        *,
        state: str,
        exit_status: int,
        error: str | None,
        kind: str | None,
        left: tuple[str, ...],
        kept: bool = False,
    ) -> events.Ended:
        """Give the last event."""
        return events.Ended(
            job=self._prepared.spec.name,
            state=state,
            exit_status=exit_status,
            source=self._prepared.source.path,
            destination=str(self._prepared.destination),
            begin_time=self.begin_time,
            seconds=self._clock() - self._started,
            bytes_total=self.total,
            bytes_source=self.counted("bytes_source"),
            bytes_cow=self.counted("bytes_cow"),
            bytes_zero=self.counted("bytes_zero"),
            bytes_resumed=self._earlier,
            exceptions=int(self._counts.get("exceptions", 0)),
            cow_used_bytes=self.cow[0] if self.cow is not None else None,
            hold_seconds=tuple(self.holds),
            digest=self.digest,
            verified=self.verified,
            error=error,
            kind=kind,
            copy_seconds=self.copy_seconds,
            left=left,
            bytes_retired=self.retired,
            retires=self.retires.count,
            retire_hold_seconds=self.retires.summary(),
            gated=self.gates.count,
            gate_hold_seconds=self.gates.summary(),
            gate_writes_held=self.gate_writes,
            kept=kept,
            md=self.md,
            held=self.held.as_json(),
        )


def _finite(band: Band | None) -> tuple[float | None, ...] | None:
    """Write a band for JSON, which has no infinity."""
    if band is None or math.isinf(band.low):
        return None
    return tuple(None if math.isinf(value) else value for value in band)


class _Rate:
    """Bytes a second over the last few seconds, for each phase on its own."""

    _WINDOW: Final = 5.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase = ""
        self._seen: list[tuple[float, int]] = []

    def after(self, phase: str, done: int) -> float:
        """Note that *done* bytes are done; give the rate, 0.0 while it is not known."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._seen = phase, []
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._WINDOW:
            self._seen.pop(0)
        (first, at_first), (last, at_last) = self._seen[0], self._seen[-1]
        return (at_last - at_first) / (last - first) if last > first else 0.0
