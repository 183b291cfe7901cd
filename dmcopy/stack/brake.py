"""The brake: writes to what is not copied yet wait, so that the COW device does not fill up.

For when the COW device is nearly full and cannot grow (``--on-full hold``).  Writes to ranges
that are not copied are held, each for a given time at most; the copier takes those ranges first;
what is copied is *retired*: writes to it need no saving any more.  A write whose range is
retired while it is held costs the COW device nothing; one whose time is over before that is
saved as ever.  So the point in time lives as long as the copy is faster than the writes' expiry.

With `Brake.only` it is the segment gate (``--gate segment``): writes to the one segment that is
being copied are held, until that is durable, on record and retired; all others pass.  So copying
it costs the COW device nothing.  Why a delay and not a suspended child: that would hold reads and
every fsync of the whole device, stay shut when we die, and block each suspend above it (KERNEL.md
5).  It is in a device of ours, not in the origin's own table, so that whoever finds it can take
it out without touching what the application has open.

Two tables move (`gate` has the picture), and the origin's own only when the brake goes on or off:

* the gate's, at each `advance`: nothing is held above a suspended gate for longer than the swap,
  for held writes sit above it, in the brake.  From then on a held write of a retired range
  passes without an exception when its time is over;
* the brake's, which releases *all* that it holds (dm-delay.c:delay_presuspend): only when that
  costs the COW device no more than the caller says it has room for.  What it would cost is known:
  the areas with held writes that are not retired, each chunk of which is saved once at most.

Who suspends the origin while the brake is on waits until what is held has expired.

Not for: deciding when, or which ranges are copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple

from dmcopy.core import dmstats
from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.core.targets.delay import Delay, DelayStatus
from dmcopy.errors import DmcopyError, PointInTimeLost
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.stack.deadman import Sentry
from dmcopy.stack.gate import (
    Announce,
    LiveTables,
    braking,
    not_retired,
    over,
    saving,
    worth_retiring,
)
from dmcopy.stack.hold import Instant, Swap
from dmcopy.stack.layers import LAYERS, Layers
from dmcopy.stack.lvm_guard import Guard
from dmcopy.stack.names import Role, device_name, device_uuid, owner
from dmcopy.stack.standby import Standby
from dmcopy.units import Sectors

log = logging.getLogger(__name__)

_NO_ROOM: Final = Sectors(0)


class Held(NamedTuple):
    """What the brake holds now."""

    writes: int  # bios; a large write may be several
    extents: tuple[Extent, ...]  # the areas they are in, in order


NOTHING_HELD: Final = Held(0, ())


class Brake:
    """The brake of one job.  One thread at a time.

    Whatever is given as *retired* must be durable at the destination and journalled as retired,
    and nobody may read it for the copy any more: the snapshot does not hold it from then on, and
    the gate's table does not say since when.  The caller sees to that; nothing here can check it.
    """

    def __init__(
        self,
        dm: Dm,
        *,
        job: str,
        origin: str,
        segment: Sectors,
        hold_limit: float,
        announce: Announce,
        standby: Callable[[str, str, Sectors, str], Standby] = Standby,
        guard: Guard = nullcontext,
    ) -> None:
        """*origin* is the dm name of a device that is spliced; *segment* the unit of `held`.

        *hold_limit*, in seconds, bounds each swap and each write's delay.  *announce* is called
        with what may be live from now on, before and after each swap, and must not return before
        the worker goes by it: until then it takes our own change for a stranger's.  *guard* is
        entered around each swap of the origin, and may refuse it (`lvm_guard`).
        """
        self._guard = guard
        self._dm = dm
        self._job = job
        self._origin = origin
        self._segment = segment
        self._limit = hold_limit
        self._announce = announce
        self._make_standby = standby
        self._layers = Layers(dm, job)
        source = self._layers.info(Role.SOURCE)
        if source is None:
            raise DmcopyError(f"job {job} has no source device, so there is nothing to brake")
        self._source = source
        self._is_of_lvm = owner(source.uuid) is None
        self._length = dm.table(source.name).length
        self._retired: list[Extent] = []  # as the gate has them
        self._tables: dict[str, Table] = {}  # by dm name: what we made live
        self._standby: Standby | None = None
        self._region = 0
        self._is_loose = False  # a swap of the brake failed, and may have left it open
        self._sentry: Sentry | None = None
        self.milliseconds = 0  # 0: off
        # what alone is held, from the next swap of the brake on; None: all that is not retired
        self.only: tuple[Extent, ...] | None = None
        self.holds: list[tuple[str, Instant]] = []  # each swap: dm name, and how long

    @property
    def is_on(self) -> bool:
        """Tell whether writes are held."""
        return self.milliseconds > 0

    def on(
        self,
        milliseconds: int,
        retired: Sequence[Extent] = (),
        *,
        only: Sequence[Extent] | None = None,
    ) -> None:
        """Hold writes for *milliseconds*, or change for how long, and to what.

        *retired* as in `advance`; empty: as before.  *only* as in `hold`; None: all that is not
        retired.  A change releases all that is held.  When it raises and the brake was off, it is
        off.
        """
        if not 0 < milliseconds <= self._limit * 1000:
            raise ValueError(f"{milliseconds} ms, where the hold limit is {self._limit:g} s")
        self.only = tuple(only) if only is not None else None
        if self.is_on:
            if retired:
                self._retire(retired)
            self.milliseconds = milliseconds
            self._swap(device_name(self._job, Role.BRAKE), self._braking())
            return
        self.off()  # what an `off` left that failed
        before = self._dm.table(self._origin)
        if not self._layers.is_origin(before):
            raise PointInTimeLost(f"the table of {self._origin} was replaced by '{before}'")
        self._tables = {self._origin: before}
        self._retired = worth_retiring(self._length, retired)
        self.milliseconds = milliseconds
        try:
            self._build()
            with self._guard():
                self._swap(self._origin, over(self._length, self._devno(Role.METER)))
        except BaseException:
            self._take_out(before)
            raise
        log.info("brake on: writes to %s wait %d ms", self._origin, milliseconds)

    def advance(self, retired: Sequence[Extent], *, room: Sectors = _NO_ROOM) -> bool:
        """Retire all of *retired*, those of before included; the brake is on.

        *room* is what the COW device may lose when that lets new writes to these ranges pass at
        full speed.  Gives whether they do; if not they wait like others, and cost no COW space.
        Raises `HoldLimitExceeded` and `DmFailed`: then the brake is on, and may be advanced again.
        """
        assert self.is_on
        self._retire(retired)
        name = device_name(self._job, Role.BRAKE)
        if self._tables[name] == self._braking() and not self._is_loose:
            return True
        cost = sum(extent.length for extent in not_retired(self.held().extents, self._retired))
        if cost > room:
            return False
        self._swap(name, self._braking())
        return True

    def hold(self, extents: Sequence[Extent]) -> None:
        """Hold writes to these alone from now on; what is held is released.  The brake is on.

        Raises `HoldLimitExceeded` and `DmFailed`: then it is as before.
        """
        assert self.is_on
        before, self.only = self.only, tuple(extents)
        try:
            if self._tables[device_name(self._job, Role.BRAKE)] != self._braking():
                self._swap(device_name(self._job, Role.BRAKE), self._braking())
        except BaseException:
            self.only = before
            raise

    def count(self) -> int:
        """Ask how many writes are held."""
        return sum(count for _, count in self._waiting())

    def held(self) -> Held:
        """Ask where writes are held: they are in these extents, which are multiples of areas.

        An area in which I/O only passes at this moment may be among them.
        """
        waiting = self._waiting()
        writes = sum(count for _, count in waiting)
        if not writes:
            return NOTHING_HELD
        answer = self._dm.message(
            device_name(self._job, Role.METER), 0, dmstats.print_message(self._region)
        )
        busy = [area.extent for area in dmstats.areas(answer) if area.in_progress]
        parts = (area.clip(row) for area in busy for row, count in waiting if count)
        return Held(writes, tuple(part for part in parts if part is not None))

    def off(self) -> None:
        """Release everything, and take the brake out; what is retired stays retired.

        When it raises, nothing is held, but the devices are there; it may be called again.
        """
        if self._tables:
            self._take_out(saving(self._length, self._source.devno, self._retired))
            log.info("brake off: %s", self._origin)

    def _build(self) -> None:
        """Make the devices, bottom first, and start the watcher: nobody uses them yet."""
        gate = self._create(Role.GATE, saving(self._length, self._source.devno, self._retired))
        brake = self._create(Role.BRAKE, self._braking())
        meter = self._create(Role.METER, over(self._length, brake.devno))
        area = dmstats.area_size(self._length, self._segment)
        answer = self._dm.message(
            meter.name, 0, dmstats.create_message(area, f"dmcopy-{self._job}")
        )
        self._region = dmstats.region(answer)
        self._sentry = Sentry([self._origin, brake.name, gate.name], limit=self._limit)
        self._standby = self._make_standby(brake.name, brake.uuid, self._length, gate.devno)
        self._standby.start()

    def _create(self, role: Role, table: Table) -> DmInfo:
        name = device_name(self._job, role)
        info = self._dm.create(name, device_uuid(self._job, role), table)
        self._tables[name] = table
        return info

    def _braking(self) -> Table:
        return braking(
            self._length, self._source.devno, self._devno(Role.GATE), self._retired,
            milliseconds=self.milliseconds, only=self.only,
        )  # fmt: skip

    def _devno(self, role: Role) -> str:
        info = self._layers.info(role)
        if info is None:
            raise PointInTimeLost(f"{device_name(self._job, role)} is gone")
        return info.devno

    def _waiting(self) -> list[tuple[Extent, int]]:
        """Give the rows of the brake that hold, and how many writes each."""
        status = self._dm.status(device_name(self._job, Role.BRAKE), flush=False)
        return [
            (
                Extent(Sectors(row.start), Sectors(row.length)),
                DelayStatus.parse(row.text).writes,
            )
            for row in status
            if row.kind == Delay.KIND
        ]

    def _retire(self, retired: Sequence[Extent]) -> None:
        self._retired = worth_retiring(self._length, retired)
        name = device_name(self._job, Role.GATE)
        table = saving(self._length, self._source.devno, self._retired)
        if self._tables[name] != table:
            self._swap(name, table)

    def _swap(self, name: str, table: Table) -> None:
        """Make *table* live, told to the worker before and after."""
        self._say(name, table)
        swap = Swap(
            dm=self._dm,
            name=name,
            limit=self._limit,
            lockfs=False,
            flush=False,
            sentry=self._sentry,
            # the origin is not ours alone: a stranger's table must not be covered up
            over=self._tables[name] if name == self._origin else None,
        )
        is_brake = name == device_name(self._job, Role.BRAKE)
        try:
            self.holds.append((name, swap(table)))
            self._tables[name] = table
            self._is_loose = self._is_loose and not is_brake
        except DmcopyError:
            # dm-delay has no presuspend_undo: after a suspend that was given up it holds nothing
            self._is_loose = self._is_loose or is_brake
            raise
        finally:
            self._say()

    def _say(self, name: str = "", coming: Table | None = None) -> None:
        def texts(one: str) -> frozenset[bytes]:
            tables = [self._tables[one]] + ([coming] if coming and one == name else [])
            if one == self._origin and self._is_of_lvm:  # LVM's own commands give it back to it
                tables.append(saving(self._length, self._source.devno, []))
            return frozenset(str(table).encode() for table in tables)

        layers = {
            device_uuid(self._job, role): texts(device_name(self._job, role))
            for role in LAYERS
            if device_name(self._job, role) in self._tables
        }
        self._announce(LiveTables(texts(self._origin), layers))

    def _take_out(self, table: Table) -> None:
        """Put the origin on *table*, and remove our devices; nothing is held from the start on."""
        brake, gate = self._layers.info(Role.BRAKE), self._layers.info(Role.GATE)
        if brake is not None and gate is not None and brake.name in self._tables:
            self._say(brake.name, over(self._length, gate.devno))
            self.holds += [(brake.name, hold) for hold in self._layers.let_go(limit=self._limit)]
            self._tables[brake.name] = over(self._length, gate.devno)
        self.milliseconds = 0
        live = self._dm.table(self._origin)
        if live != table and self._layers.is_origin(live):  # else a stranger's
            self._tables[self._origin] = live
            self._swap(self._origin, table)
        # The worker looks at the layers no more before they go.
        self._tables = {self._origin: table}
        self._say()
        if self._standby is not None:
            self._standby.end()
            self._standby = None
        if self._sentry is not None:
            self._sentry.end()
            self._sentry = None
        self._layers.remove()
        self._tables = {}
