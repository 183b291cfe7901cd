"""Watches how the COW device fills while a job runs, and does what can be done about it.

Looks at the snapshot's status ten times a second, whatever the worker waits for.  First the
COW device grows, while there is room; then, with ``--on-full hold``, writers are braked.  With
``--on-full fail`` the kernel lets the snapshot go when it is full, never a write.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from dmcopy.core import events
from dmcopy.core.extent import Extent
from dmcopy.core.forecast import First, Forecast, Outlook
from dmcopy.core.targets.snapshot import SnapshotStatus
from dmcopy.errors import DmcopyError, DmFailed, Interrupted, PointInTimeLost
from dmcopy.kernel.dm import Dm
from dmcopy.stack.hold import Instant
from dmcopy.units import MIB, Bytes, Sectors, format_size, sectors_down, to_bytes

LOOK_SECONDS: Final = 0.1
_OUTLOOK_SECONDS: Final = 1.0
_AHEAD_SECONDS: Final = 20.0  # of writes that must always fit: growing takes its time
_GROW_SHARE: Final = 4  # so much of the COW device, a quarter, is to be free
_GROW_SHARE_AT_FIRST: Final = 2  # a half, while the rate is not known yet
_RETRY_SECONDS: Final = 5.0  # after there was no room to grow: others may make some
_GENTLE_SHARE: Final = 3  # less than a third is free: writers are slowed
_HARD_SHARE: Final = 6  # less than a sixth: they are held
_GENTLE_MS: Final = 50
_BATCH: Final = Bytes(16 * MIB)  # while the brake is on: what is copied is retired soon
_BATCH_SECONDS: Final = 0.5
_WARN_SECONDS: Final = 600.0
_OF_LATE_SECONDS: Final = 0.5


class Grower(Protocol):
    """Makes the COW device larger; a stack.grow.Grower is one."""

    holds: list[float]  # seconds that each change held writes
    takes_time: bool  # seconds, and it cannot while the brake is on

    @property
    def size(self) -> Bytes:
        """What it has now."""

    def can_grow_to(self) -> Bytes:
        """Give the limit that was planned."""

    def step(self) -> Bytes:
        """Give the size after one step of the usual length."""

    def grow(self, to: Bytes) -> Bytes:
        """Make it at least *to* large; gives the new size; raises `CowCannotGrow`."""


class Held(Protocol):
    """What a brake holds."""

    @property
    def writes(self) -> int:
        """How many writes wait."""

    @property
    def extents(self) -> Sequence[Extent]:
        """Where they are."""


class Brake(Protocol):
    """Holds writes to what is not copied; a stack.brake.Brake is one."""

    milliseconds: int
    holds: list[tuple[str, Instant]]  # each swap: dm name, and how long

    @property
    def is_on(self) -> bool:
        """Tell whether writes are held."""

    def on(
        self,
        milliseconds: int,
        retired: Sequence[Extent] = (),
        *,
        only: Sequence[Extent] | None = None,
    ) -> None:
        """Hold writes, or change for how long, and to what."""

    def advance(self, retired: Sequence[Extent], *, room: Sectors = ...) -> bool:
        """Let writes to *retired* pass without being saved."""

    def held(self) -> Held:
        """Ask what is held."""

    def off(self) -> None:
        """Hold nothing any more."""


class Steer(NamedTuple):
    """What the watch needs of the job: what is retired, and ways to the copier and the user."""

    retire: Callable[[], Sequence[Extent]]  # put on record that all that is durable is retired
    first: Callable[[Sequence[Extent]], None]  # have this copied before all else
    batches: Callable[[Bytes, float], None]  # how large they are, and how many seconds
    tell: Callable[[events.Event], None]
    warn: Callable[[str], None]
    hold: Callable[[str, float], None]  # a hold of writes: why, and its seconds


class CowWatch:
    """The watch over one job's COW device; `tick` often, `end` in every case."""

    def __init__(
        self,
        dm: Dm,
        job: str,
        snapshot: str,
        forecast: Forecast,
        steer: Steer,
        *,
        size: Bytes,
        grower: Grower | None,
        brake: Callable[[], Brake] | None,
        hold_limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*snapshot* is the dm name, *size* of what is copied; None: it cannot, or may not."""
        self._dm = dm
        self._job = job
        self._snapshot = snapshot
        self._forecast = forecast
        self._steer = steer
        self._size = size
        self._grower = grower
        self._make_brake = brake
        self._brake: Brake | None = None
        self._hold_limit = hold_limit
        self._clock = clock
        self._looked = 0.0
        self._foreseen = 0.0
        self._refused = -_RETRY_SECONDS  # when there was no room to grow
        self._told: set[str] = set()
        self._holds = 0  # of the brake, that were told
        self._warned = False
        self._first: tuple[Extent, ...] = ()
        self._of_late: deque[tuple[float, Bytes]] = deque()  # when, and how much was used
        self.cow: tuple[Bytes, Bytes] | None = None  # used and in all, when last looked at
        self.outlook: Outlook | None = None

    def tick(self, done: Bytes) -> None:
        """Look, unless that was done a moment ago; *done* bytes are copied."""
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        status = self._status()
        if status is None or not status.is_valid:
            return  # the worker notices, and says why
        used, total = to_bytes(status.used), to_bytes(status.total)
        self.cow = used, total
        self._of_late.append((now, used))
        while now - self._of_late[0][0] > _OF_LATE_SECONDS:
            self._of_late.popleft()
        self._forecast.add(now, used=used, done=done)
        outlook = self._look_ahead(now, used, total)
        if outlook.full is None and outlook.first is not First.UNKNOWN:
            return  # all that can be written fits
        if not self._grow_if_needed(used, total, outlook):
            self._brake_if_needed(used, total, outlook)
        if self._grower is None or self._grower.can_grow_to() <= total:
            self._warn_if_needed(outlook)

    def _look_ahead(self, now: float, used: Bytes, total: Bytes) -> Outlook:
        """Give the outlook: once a second is enough while there is room, for it takes time."""
        urgent = total - used < self._rate_of_late() * self._hold_limit
        soon = self.outlook is None or urgent or 2 * used > total
        if soon or now - self._foreseen >= _OUTLOOK_SECONDS:
            self.outlook = self._forecast.outlook(total=total, size=self._size)
            self._foreseen = now
        assert self.outlook is not None
        return self.outlook

    def _status(self) -> SnapshotStatus | None:
        try:
            (said,) = self._dm.status(self._snapshot, flush=False)
        except (DmFailed, ValueError):
            return None
        return SnapshotStatus.parse(said.text)

    # growth

    def _grow_if_needed(self, used: Bytes, total: Bytes, outlook: Outlook) -> bool:
        """Grow; tell whether nothing more need be done."""
        grower = self._grower
        soon = outlook.fill_rate * _AHEAD_SECONDS
        share = _GROW_SHARE if outlook.first is not First.UNKNOWN else _GROW_SHARE_AT_FIRST
        if total - used > max(total / share, soon, self._rate_of_late() * self._hold_limit):
            return True
        if outlook.first is First.DONE and total - used > total / (2 * _GROW_SHARE):
            return True
        if grower is None or grower.can_grow_to() <= total:
            return False
        if self._clock() - self._refused < _RETRY_SECONDS:
            return False
        if grower.takes_time and self._make_brake is not None and self._is_late(used, total):
            return False
        wanted = max(grower.step(), Bytes(int(total + 2 * soon)))
        started = self._clock()
        try:
            size = grower.grow(min(wanted, grower.can_grow_to()))
        except Interrupted:
            raise
        except (DmcopyError, OSError) as exc:
            self._refused = self._clock()
            self._warn_once(str(exc))
            return False
        self._steer.hold("grow", grower.holds[-1] if grower.holds else 0.0)
        self._steer.tell(
            events.Grown(
                job=self._job,
                cow_used_bytes=used,
                cow_total_bytes=size,
                cow_most_bytes=grower.can_grow_to(),
                seconds=self._clock() - started,
            )
        )
        return True

    def _is_late(self, used: Bytes, total: Bytes) -> bool:
        """Tell whether it would be full before it has grown, or the brake is on."""
        soon = self._rate_of_late() * self._hold_limit
        return self.is_braked or total - used < max(total / _HARD_SHARE, soon)

    # the brake

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._steer.warn(text)

    def _brake_if_needed(self, used: Bytes, total: Bytes, outlook: Outlook) -> None:
        if self._make_brake is None:
            return
        free = total - used
        level = 0
        if free < total / _GENTLE_SHARE and outlook.first is not First.DONE:
            level = min(_GENTLE_MS, self._hardest)
        # the forecast's rate follows slowly; what counts here are the next two seconds
        rate = max(outlook.fill_rate, self._rate_of_late())
        if free < max(total / _HARD_SHARE, rate * self._hold_limit):
            level = self._hardest
        if self._brake is not None and level <= self._brake.milliseconds:
            self._look_who_waits()
            return
        if level:
            self._put_on(level, used, total)

    def _rate_of_late(self) -> float:
        """Give how fast the COW device has filled in the last half second, in bytes a second."""
        (first, at_first), (last, at_last) = self._of_late[0], self._of_late[-1]
        return (at_last - at_first) / (last - first) if last > first else 0.0

    @property
    def _hardest(self) -> int:
        return int(self._hold_limit * 1000)

    def _put_on(self, milliseconds: int, used: Bytes, total: Bytes) -> None:
        assert self._make_brake is not None
        if self._brake is None:
            self._steer.batches(_BATCH, _BATCH_SECONDS)
            self._brake = self._make_brake()
        try:
            self._brake.on(milliseconds, self._steer.retire())
        except (PointInTimeLost, Interrupted):
            raise
        except DmcopyError as exc:  # it is as it was, and tried again at the next look
            self._warn_once(f"the brake could not be put on: {exc}")
            return
        finally:
            self._tell_holds()
        self._steer.tell(
            events.Braked(
                job=self._job,
                milliseconds=milliseconds,
                cow_used_bytes=used,
                cow_total_bytes=total,
            )
        )

    def _look_who_waits(self) -> None:
        """Have that copied first for which somebody waits."""
        assert self._brake is not None
        held = tuple(self._brake.held().extents)
        if held != self._first:
            self._first = held
            self._steer.first(held)

    @property
    def is_braked(self) -> bool:
        """Tell whether writes to all that is not copied wait."""
        return self._brake is not None and self._brake.is_on

    def durable(self) -> None:
        """Something more is durable at the destination, and on record."""
        if self._brake is not None and self._brake.is_on and self.cow is not None:
            used, total = self.cow
            spare = Bytes(max(total - used - total // _HARD_SHARE, 0))
            try:
                self._brake.advance(self._steer.retire(), room=sectors_down(spare))
            except (PointInTimeLost, Interrupted):
                raise
            except DmcopyError as exc:  # the brake is on, and is advanced with the next batch
                self._warn_once(f"the brake could not be advanced: {exc}")
            finally:
                self._tell_holds()

    def _tell_holds(self) -> None:
        if self._brake is not None:
            for _, instant in self._brake.holds[self._holds :]:
                self._steer.hold("brake", instant.held)
            self._holds = len(self._brake.holds)

    def _warn_if_needed(self, outlook: Outlook) -> None:
        if self._warned or outlook.full is None or outlook.first is not First.FULL:
            return
        if outlook.full.likely < _WARN_SECONDS:
            self._warned = True
            assert self.cow is not None
            share = f"{self.cow[0] / self.cow[1]:.0%} of {format_size(self.cow[1])}"
            then = "writers are slowed" if self._make_brake else "the point in time is lost then"
            self._steer.warn(
                f"the COW device ({share} used) will be full in about {outlook.full.likely:.0f} s, "
                f"before the copy is done; {then}"
            )

    def end(self) -> None:
        """Let go of every write; raises what `Brake.off` raises."""
        if self._brake is not None:
            try:
                self._brake.off()
            finally:
                self._tell_holds()
            self._brake = None
            self._steer.tell(events.Braked(job=self._job, milliseconds=0))
