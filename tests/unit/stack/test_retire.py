"""Retiring swaps one table, and leaves what it may not touch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.errors import DmcopyError, DmFailed, HoldLimitExceeded, PointInTimeLost
from dmcopy.stack import deadman
from dmcopy.stack.counters import WriteCounter, counter_area, forget_counters
from dmcopy.stack.deadman import Sentry
from dmcopy.stack.gate import LiveTables
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.retire import Retire
from dmcopy.units import Sectors
from tests.unit.fake_dm import FakeDm

LENGTH = 2048
SOURCE = device_name("j", Role.SOURCE)


class DeadMan:
    """Stands in for the dead man."""

    started: list[tuple[str, ...]]

    def __init__(self, names: Sequence[str], *, limit: float) -> None:
        assert limit == 0.5
        self.names = tuple(names)
        self.fired = False
        self.is_alive = True

    def __enter__(self) -> DeadMan:
        self.started.append(self.names)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_alive = False

    def arm(self) -> None:
        self.fired = False

    def disarm(self) -> None:
        return


@pytest.fixture(autouse=True)
def dead_man(monkeypatch: pytest.MonkeyPatch) -> type[DeadMan]:
    monkeypatch.setattr(deadman, "DeadMan", DeadMan)
    monkeypatch.setattr(DeadMan, "started", [], raising=False)
    return DeadMan


@pytest.fixture
def dm() -> FakeDm:
    dm = FakeDm()
    source = dm.add(SOURCE, f"0 {LENGTH} linear 8:0 0", uuid=device_uuid("j", Role.SOURCE))
    dm.add("data", f"0 {LENGTH} snapshot-origin {source.devno}", opened=1)
    return dm


@pytest.fixture
def told() -> list[LiveTables]:
    return []


@pytest.fixture
def retire(dm: FakeDm, told: list[LiveTables]) -> Retire:
    return Retire(dm, job="j", origin="data", hold_limit=2.0, announce=told.append)


def extent(start: int, length: int) -> Extent:
    return Extent(Sectors(start), Sectors(length))


def test_table_is_mixed_after_one_swap(
    dm: FakeDm, retire: Retire, told: list[LiveTables], dead_man: type[DeadMan]
) -> None:
    before = dm.table("data")
    assert retire.advance([extent(0, 256), extent(256, 256)]) is not None
    source = dm.all[SOURCE].devno
    after = Table.parse(f"0 512 linear {source} 0\n512 1536 snapshot-origin {source}")
    assert dm.table("data") == after
    assert dm.calls == ["load data", "suspend data", "resume data"]
    assert told == [
        LiveTables(frozenset([str(before).encode(), str(after).encode()])),
        LiveTables(frozenset([str(after).encode()])),
    ]
    assert retire.retired == (extent(0, 512),)
    assert retire.advance([extent(0, 512)]) is None
    assert retire.advance([extent(0, 1024)]) is not None
    assert dead_man.started == [("data",)], "one dead man for all swaps"
    retire.end()


def test_strangers_table_is_neither_covered_up_nor_left_loaded(
    dm: FakeDm, retire: Retire, told: list[LiveTables]
) -> None:
    retire.advance([extent(0, 256)])
    ours = dm.table("data")
    stranger = Table.parse(f"0 {LENGTH} linear 8:0 0")
    suspend = dm.suspend

    def between(name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        dm.all[name].live = stranger  # right before I/O is held
        suspend(name, lockfs=lockfs, flush=flush)

    dm.suspend = between  # type: ignore[method-assign] # a stranger
    with pytest.raises(PointInTimeLost, match="was replaced by"):
        retire.advance([extent(0, 512)])
    assert dm.table("data") == stranger
    assert dm.all["data"].inactive is None
    assert told[-1] == LiveTables(frozenset([str(ours).encode()])), "the worker takes it for lost"
    with pytest.raises(PointInTimeLost, match="was replaced by"):
        retire.advance([extent(0, 512)])


def test_table_that_a_stranger_has_loaded_is_left_to_him(dm: FakeDm, retire: Retire) -> None:
    before, stranger = dm.table("data"), Table.parse(f"0 {LENGTH} linear 8:0 0")
    dm.load("data", stranger)
    dm.calls.clear()
    with pytest.raises(DmcopyError, match="somebody else has loaded a table for data"):
        retire.advance([extent(0, 256)])
    assert dm.calls == []
    assert dm.table("data", inactive=True) == stranger
    dm.clear("data")  # he has thought better of it
    assert dm.table("data") == before
    assert retire.advance([extent(0, 256)]) is not None


def test_swap_that_fails_leaves_all_as_it_was(
    dm: FakeDm, retire: Retire, told: list[LiveTables]
) -> None:
    before = dm.table("data")
    dm.fail["suspend data"] = DmFailed("suspend", "data", "Interrupted system call")
    with pytest.raises(DmFailed):
        retire.advance([extent(0, 256)])
    assert dm.table("data") == before
    assert told[-1] == LiveTables(frozenset([str(before).encode()]))
    assert retire.retired == ()
    del dm.fail["suspend data"]
    assert retire.advance([extent(0, 256)]) is not None


def test_hold_that_took_too_long_is_tried_once(
    dm: FakeDm, retire: Retire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fire(self: DeadMan) -> None:
        self.fired = True

    monkeypatch.setattr(DeadMan, "disarm", fire)
    dm.fail["suspend data"] = DmFailed("suspend", "data", "Interrupted system call")
    with pytest.raises(HoldLimitExceeded, match=r"within 0.5 s \(1 attempts\)"):
        retire.advance([extent(0, 256)])
    assert dm.calls.count("load data") == 1


def test_job_without_a_source_device_retires_nothing(dm: FakeDm) -> None:
    with pytest.raises(DmcopyError, match="has no source device"):
        Retire(dm, job="other", origin="data", hold_limit=2.0, announce=lambda _: None)


def test_sentry_starts_another_dead_man_when_the_first_was_killed(
    dead_man: type[DeadMan],
) -> None:
    sentry = Sentry(["a", "b"], limit=0.5)
    first = sentry.ready()
    assert sentry.ready() is first
    first.is_alive = False  # type: ignore[misc] # the stand-in's
    assert sentry.ready() is not first
    assert dead_man.started == [("a", "b")] * 2
    sentry.end()
    sentry.end()


class Counting(FakeDm):
    """Has counters of dm-stats on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: dict[int, str] = {}
        self.counts = ""

    def message(self, name: str, sector: int, text: str) -> str:
        super().message(name, sector, text)
        verb, *words = text.split()
        match verb:
            case "@stats_create":
                self.regions[len(self.regions)] = words[-1]
                return str(len(self.regions) - 1)
            case "@stats_list":
                return "\n".join(f"{n}: 0+8 8 {p} -" for n, p in self.regions.items() if p in words)
            case "@stats_delete":
                del self.regions[int(words[0])]
                return ""
        return self.counts


def test_counters_tell_what_was_written_and_are_taken_away() -> None:
    dm = Counting()
    dm.regions = {0: "somebody"}
    area = counter_area(Sectors(32768), Sectors(512))
    assert area == 512
    counter = WriteCounter(dm, job="j", origin="data", area=area)
    assert counter.take() == []
    counter.start()
    assert dm.regions == {0: "somebody", 1: "dmcopy-j"}
    dm.counts = "0+512" + " 0" * 4 + " 7" + " 0" * 8 + "\n512+512" + " 0" * 13
    assert counter.take() == [(0, 7)]
    counter.end()
    counter.end()
    assert dm.regions == {0: "somebody"}


def test_counters_of_a_job_that_died_are_taken_away_before_it_counts_again() -> None:
    dm = Counting()
    WriteCounter(dm, job="j", origin="data", area=Sectors(8)).start()
    WriteCounter(dm, job="j", origin="data", area=Sectors(8)).start()
    assert list(dm.regions.values()) == ["dmcopy-j"]
    forget_counters(dm, "data", "j")
    assert dm.regions == {}
    dm.fail["message 0 @stats_list dmcopy-j to data"] = DmFailed("message", "data", "gone")
    forget_counters(dm, "data", "j")


@pytest.mark.parametrize("segments", [1, 1024, 1025, 100_000])
def test_areas_are_segments_and_at_most_a_thousand(segments: int) -> None:
    area = counter_area(Sectors(segments * 8192), Sectors(8192))
    assert area % 8192 == 0
    assert segments * 8192 <= area * 1024
