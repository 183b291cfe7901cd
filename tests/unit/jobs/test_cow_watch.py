"""What is done about a COW device that fills: growth first, then the brake; decided by figures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dmcopy.core import events
from dmcopy.core.extent import Extent
from dmcopy.core.forecast import Forecast
from dmcopy.errors import CowCannotGrow, HoldLimitExceeded, PointInTimeLost
from dmcopy.jobs.cow_watch import LOOK_SECONDS, CowWatch, Steer
from dmcopy.kernel.dm import DmStatus
from dmcopy.stack.hold import Instant
from dmcopy.units import MIB, Bytes, Sectors
from tests.unit.fake_dm import FakeDm

SIZE = Bytes(1024 * MIB)
_NO_ROOM = Sectors(0)


class Store(FakeDm):
    """A snapshot that says how full it is."""

    used, total = 1 * MIB, 64 * MIB
    text: str | None = None

    def status(self, name: str, *, flush: bool = True) -> list[DmStatus]:
        assert not flush, "never waits for I/O"
        text = self.text or f"{self.used // 512}/{self.total // 512} 16"
        return [DmStatus(0, 2048, "snapshot", text)]


class FakeGrower:
    def __init__(self, dm: Store, most: int) -> None:
        self._dm = dm
        self._most = most
        self.asked: list[int] = []
        self.holds: list[float] = []
        self.takes_time = False
        self.error: Exception | None = None

    @property
    def size(self) -> Bytes:
        return Bytes(self._dm.total)

    def can_grow_to(self) -> Bytes:
        return Bytes(self._most)

    def step(self) -> Bytes:
        return Bytes(min(self._most, self._dm.total + 16 * MIB))

    def grow(self, to: Bytes) -> Bytes:
        self.asked.append(to)
        if self.error is not None:
            raise self.error
        self._dm.total = to
        self.holds.append(0.001)
        return to


class FakeHeld:
    writes = 1
    extents: tuple[Extent, ...] = ()


class FakeBrake:
    def __init__(self) -> None:
        self.milliseconds = 0
        self.holds: list[tuple[str, Instant]] = []
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.waiting = FakeHeld()

    @property
    def is_on(self) -> bool:
        return self.milliseconds > 0

    def on(
        self,
        milliseconds: int,
        retired: Sequence[Extent] = (),
        *,
        only: Sequence[Extent] | None = None,
    ) -> None:
        assert only is None
        self.calls.append(f"on {milliseconds} {len(retired)}")
        if self.error is not None:
            raise self.error
        self.holds.append(("x", Instant(begin_ns=0, held=0.002)))
        self.milliseconds = milliseconds

    def advance(self, retired: Sequence[Extent], *, room: Sectors = _NO_ROOM) -> bool:
        self.calls.append(f"advance {len(retired)}")
        if self.error is not None:
            raise self.error
        return True

    def held(self) -> FakeHeld:
        return self.waiting

    def off(self) -> None:
        self.calls.append("off")
        self.milliseconds = 0


class Watched:
    def __init__(self, *, most: int | None = None, brake: bool = False) -> None:
        self.dm = Store()
        self.now = 100.0
        self.done = 0
        self.told: list[events.Event] = []
        self.warned: list[str] = []
        self.holds: list[str] = []
        self.first: list[Sequence[Extent]] = []
        self.batches: list[int] = []
        self.grower = FakeGrower(self.dm, most) if most is not None else None
        self.brake = FakeBrake()
        self.retired = [Extent(Sectors(0), Sectors(8))]
        steer = Steer(
            retire=lambda: self.retired,
            first=self.first.append,
            batches=lambda size, seconds: self.batches.append(size),
            tell=self.told.append,
            warn=self.warned.append,
            hold=lambda why, seconds: self.holds.append(why),
        )
        self.watch = CowWatch(
            self.dm,
            "j",
            "dmcopy-j-snap",
            Forecast(),
            steer,
            size=SIZE,
            grower=self.grower,
            brake=(lambda: self.brake) if brake else None,
            hold_limit=2.0,
            clock=lambda: self.now,
        )

    def run(self, seconds: float, *, fill: float, copy: float = 0.5 * MIB) -> None:
        """Let time pass; *fill* and *copy* are bytes a second."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.now += LOOK_SECONDS * 1.01
            self.dm.used = int(min(self.dm.used + fill * LOOK_SECONDS, self.dm.total))
            self.done += int(copy * LOOK_SECONDS)
            self.watch.tick(Bytes(self.done))


def test_quiet_device_is_left_alone() -> None:
    watched = Watched(most=128 * MIB, brake=True)
    watched.run(60, fill=0)
    assert watched.told == []
    assert watched.warned == []
    assert watched.watch.cow == (1 * MIB, 64 * MIB)


def test_it_grows_in_time_again_and_again_up_to_its_limit() -> None:
    watched = Watched(most=128 * MIB)
    watched.run(50, fill=1 * MIB)
    grown = [event for event in watched.told if isinstance(event, events.Grown)]
    assert grown
    assert watched.dm.total - watched.dm.used > 16 * MIB, "always some seconds ahead"
    assert watched.holds == ["grow"] * len(grown)
    watched.run(60, fill=1 * MIB)
    assert watched.dm.total == 128 * MIB
    assert grown[0].cow_most_bytes == 128 * MIB


def test_no_growth_where_the_copy_is_done_first() -> None:
    watched = Watched(most=128 * MIB)
    watched.run(20, fill=0.2 * MIB, copy=50 * MIB)
    assert watched.grower is not None
    assert watched.grower.asked == []


def test_failure_to_grow_is_said_once_and_tried_again_later() -> None:
    watched = Watched(most=128 * MIB)
    assert watched.grower is not None
    watched.grower.error = CowCannotGrow("no room")
    watched.run(56, fill=1 * MIB)
    assert watched.warned.count("no room") == 1
    tried = len(watched.grower.asked)
    assert 2 <= tried <= 20
    watched.grower.error = None
    watched.run(6, fill=0.1 * MIB)
    assert watched.dm.total > 64 * MIB


def test_growth_that_takes_time_gives_way_to_the_brake_when_it_is_late() -> None:
    """LVM takes a second to extend a snapshot, and cannot with the brake's devices over it."""
    watched = Watched(most=128 * MIB, brake=True)
    assert watched.grower is not None
    watched.grower.takes_time = True
    watched.run(20, fill=0)
    watched.dm.used = 60 * MIB
    watched.run(2, fill=20 * MIB)
    assert watched.grower.asked == []
    assert watched.brake.milliseconds == 2000
    watched.run(10, fill=0)
    assert watched.grower.asked == [], "not while the brake is on"


def test_warned_early_that_it_will_be_full() -> None:
    watched = Watched()
    watched.run(20, fill=1 * MIB)
    (warned,) = watched.warned
    assert "will be full in about" in warned
    assert "the point in time is lost then" in warned
    assert watched.dm.used < 40 * MIB


def test_brake_is_put_on_in_two_steps_and_taken_off() -> None:
    watched = Watched(brake=True)
    watched.run(48, fill=1 * MIB)
    assert watched.brake.milliseconds == 50
    watched.run(8, fill=1 * MIB)
    assert watched.brake.milliseconds == 2000
    assert watched.brake.calls == ["on 50 1", "on 2000 1"]
    assert watched.batches == [16 * MIB], "what is copied is retired soon"
    watched.watch.durable()
    watched.watch.end()
    watched.watch.end()
    assert watched.brake.calls[2:] == ["advance 1", "off"]
    braked = [event.milliseconds for event in watched.told if isinstance(event, events.Braked)]
    assert braked == [50, 2000, 0]
    assert set(watched.holds) == {"brake"}


def test_burst_that_would_fill_it_within_the_hold_limit_is_held_at_once() -> None:
    """The forecast follows slowly, for most bursts are over soon."""
    watched = Watched(brake=True)
    watched.run(30, fill=0.5 * MIB)
    assert watched.brake.calls == []
    watched.run(0.5, fill=30 * MIB)
    assert watched.brake.calls[0] == "on 2000 1"


def test_growth_comes_before_the_brake() -> None:
    watched = Watched(most=96 * MIB, brake=True)
    watched.run(60, fill=1 * MIB)
    assert watched.brake.calls == []
    watched.run(30, fill=1 * MIB)
    assert watched.brake.calls


def test_what_somebody_waits_for_is_copied_first() -> None:
    watched = Watched(brake=True)
    watched.run(48, fill=1 * MIB)
    watched.brake.waiting = FakeHeld()
    watched.brake.waiting.extents = (Extent(Sectors(64), Sectors(8)),)
    watched.run(1, fill=0)
    assert watched.first == [(Extent(Sectors(64), Sectors(8)),)], "said once"


@pytest.mark.parametrize("where", ["on", "advance"])
def test_swap_that_fails_is_tried_again_and_the_job_goes_on(where: str) -> None:
    watched = Watched(brake=True)
    if where == "advance":
        watched.run(48, fill=1 * MIB)
    watched.brake.error = HoldLimitExceeded("too long")
    if where == "on":
        watched.run(48, fill=1 * MIB)
    watched.watch.durable()
    watched.watch.durable()
    assert len([said for said in watched.warned if "too long" in said]) == 1
    watched.brake.error = None
    watched.run(4, fill=1 * MIB)
    watched.watch.durable()
    assert watched.brake.is_on
    assert watched.brake.calls[-1] == "advance 1"


def test_origin_that_is_not_ours_any_more_ends_the_job() -> None:
    watched = Watched(brake=True)
    watched.brake.error = PointInTimeLost("replaced")
    with pytest.raises(PointInTimeLost):
        watched.run(60, fill=1 * MIB)


def test_invalid_snapshot_is_left_to_the_worker() -> None:
    watched = Watched(most=128 * MIB, brake=True)
    watched.dm.text = "Invalid"
    watched.run(5, fill=0)
    assert watched.told == []
    assert watched.watch.cow is None
