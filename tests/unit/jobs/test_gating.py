"""The segment gate: up before the read, let go when retired, and never in the brake's way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from dmcopy.core import events
from dmcopy.core.extent import Extent
from dmcopy.errors import HoldLimitExceeded, PointInTimeLost
from dmcopy.jobs.gating import Gating
from dmcopy.stack.brake import Brake
from dmcopy.units import Sectors


class FakeBrake:
    def __init__(self) -> None:
        self.only: tuple[Extent, ...] | None = None
        self.is_on = False
        self.holds: list[object] = []
        self.calls: list[str] = []
        self.error: Exception | None = None

    def _call(self, text: str) -> None:
        self.calls.append(text)
        if self.error is not None:
            raise self.error

    def on(self, milliseconds: int, retired: Sequence[Extent], *, only: Sequence[Extent]) -> None:
        self._call(f"on {milliseconds} {len(retired)}")
        self.only, self.is_on = tuple(only), True

    def hold(self, extents: Sequence[Extent]) -> None:
        self._call(f"hold {extents[0].start}")
        self.only = tuple(extents)
        self.holds.append("swap")

    def advance(self, retired: Sequence[Extent]) -> bool:
        assert self.only == (), "nothing is held by the table that lets go"
        self._call(f"advance {len(retired)}")
        return True

    def count(self) -> int:
        return 3

    def off(self) -> None:
        self.calls.append("off")
        self.is_on = False


class Case:
    def __init__(self) -> None:
        self.now = 10.0
        self.brake = FakeBrake()
        self.retired: list[Extent] = []
        self.told: list[events.Segment] = []
        self.warned: list[str] = []
        self.gating = Gating(
            "j",
            cast(Brake, self.brake),
            lambda: self.retired,
            self.told.append,
            self.warned.append,
            hold_limit=2.0,
            clock=lambda: self.now,
        )


SEGMENT = Extent(Sectors(512), Sectors(8))


@pytest.fixture
def case() -> Case:
    case = Case()
    case.gating.start()
    return case


def test_segment_is_held_until_it_is_retired(case: Case) -> None:
    case.gating.up(SEGMENT)
    assert case.gating.gated == (SEGMENT, 0.0)
    case.now += 0.25
    case.retired = [SEGMENT]
    case.gating.durable()
    assert case.brake.calls == ["on 500 0", "hold 512", "advance 1"]
    (told,) = case.told
    assert (told.offset_bytes, told.length_bytes) == (SEGMENT.offset, SEGMENT.size)
    assert (told.hold_seconds, told.writes_held) == (0.25, 3)
    assert case.gating.gated is None
    assert case.gating.retired == SEGMENT.size
    assert case.brake.holds == []
    case.gating.end()
    assert case.brake.calls[-1] == "off"


def test_segment_that_cannot_be_gated_is_copied_all_the_same(case: Case) -> None:
    case.brake.error = HoldLimitExceeded("I/O under way")
    for _ in range(2):
        case.gating.up(SEGMENT)
        assert case.gating.gated is None
    case.brake.error = None
    case.gating.durable()
    assert len(case.warned) == 1
    assert case.told == []


def test_point_in_time_that_is_lost_is_told_as_such(case: Case) -> None:
    case.brake.error = PointInTimeLost("replaced")
    with pytest.raises(PointInTimeLost):
        case.gating.up(SEGMENT)
    with pytest.raises(PointInTimeLost):
        case.gating.durable()


def test_brake_that_holds_everything_has_the_word(case: Case) -> None:
    case.brake.only = None
    case.brake.calls.clear()
    case.gating.up(SEGMENT)
    case.gating.durable()
    assert case.brake.calls == []
