"""The brake's order of doing things, and what is left when one of them fails."""

from __future__ import annotations

import pytest

from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.core.targets.delay import Delay
from dmcopy.errors import DmcopyError, DmFailed, PointInTimeLost
from dmcopy.kernel.dm import DmStatus
from dmcopy.stack import deadman, hold
from dmcopy.stack.brake import Brake, Held
from dmcopy.stack.gate import LiveTables
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.standby import Standby
from dmcopy.units import Sectors
from tests.unit.fake_dm import FakeDm
from tests.unit.stack.no_dead_man import NoDeadMan

LENGTH, SEGMENT = 2048, 256
SOURCE, GATE, BRAKE, METER = (
    device_name("j", role) for role in (Role.SOURCE, Role.GATE, Role.BRAKE, Role.METER)
)


class Dm(FakeDm):
    """Has a brake that holds writes: *held*, a sector each."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[int] = []

    def status(self, name: str, *, flush: bool = True) -> list[DmStatus]:
        del flush
        rows = self.all[name].live.rows
        return [
            DmStatus(
                row.start, row.target.length, row.target.kind,
                f"0 {self._count(row.start, row.target.length)} 0"
                if isinstance(row.target, Delay) else "",
            )
            for row in rows
        ]  # fmt: skip

    def _count(self, start: int, length: int) -> int:
        return sum(start <= sector < start + length for sector in self.held)

    def message(self, name: str, sector: int, text: str) -> str:
        super().message(name, sector, text)
        if not text.startswith("@stats_print 0"):
            return "0"
        return "\n".join(
            f"{at}+{SEGMENT}" + " 0" * 8 + f" {self._count(at, SEGMENT)}" + " 0" * 4
            for at in range(0, LENGTH, SEGMENT)
        )


class Watcher(Standby):
    """Stands in for the brake's watcher."""

    notes: list[str]
    fail = False

    def start(self) -> None:
        self.notes.append("watch")
        if self.fail:
            raise DmcopyError("the brake's watcher did not start")

    def end(self) -> None:
        self.notes.append("watch no more")


@pytest.fixture(autouse=True)
def watcher(monkeypatch: pytest.MonkeyPatch) -> type[Watcher]:
    monkeypatch.setattr(hold, "DeadMan", NoDeadMan)
    monkeypatch.setattr(deadman, "DeadMan", NoDeadMan)
    monkeypatch.setattr(Watcher, "notes", [], raising=False)
    monkeypatch.setattr(Watcher, "fail", False)
    return Watcher


@pytest.fixture
def dm() -> Dm:
    dm = Dm()
    source = dm.add(SOURCE, f"0 {LENGTH} linear 8:0 0", uuid=device_uuid("j", Role.SOURCE))
    dm.add("data", f"0 {LENGTH} snapshot-origin {source.devno}", opened=1)
    return dm


@pytest.fixture
def told() -> list[LiveTables]:
    return []


@pytest.fixture
def brake(dm: Dm, told: list[LiveTables]) -> Brake:
    return Brake(
        dm, job="j", origin="data", segment=Sectors(SEGMENT), hold_limit=2.0,
        announce=told.append, standby=Watcher,
    )  # fmt: skip


def segment(number: int, count: int = 1) -> Extent:
    return Extent(Sectors(number * SEGMENT), Sectors(count * SEGMENT))


def test_origin_is_swapped_once_everything_below_it_is_there_and_watched(
    dm: Dm, brake: Brake, watcher: type[Watcher]
) -> None:
    brake.on(500)
    assert [call.split()[0] for call in dm.calls] == [
        *("create", "create", "create", "message", "load", "suspend", "resume")
    ]
    assert dm.calls[-3:] == ["load data", "suspend data", "resume data"]
    assert watcher.notes == ["watch"]
    assert dm.all["data"].live.devices() == {dm.all[METER].devno}
    assert dm.all[METER].live.devices() == {dm.all[BRAKE].devno}
    assert dm.all[BRAKE].live.devices() == {dm.all[GATE].devno}
    assert dm.all[GATE].live.devices() == {dm.all[SOURCE].devno}
    assert brake.is_on


def test_off_lets_go_first_and_leaves_what_is_retired_out(
    dm: Dm, brake: Brake, watcher: type[Watcher]
) -> None:
    brake.on(500, [segment(0)])
    dm.calls.clear()
    brake.off()
    assert dm.calls == [
        *(f"load {BRAKE}", f"resume {BRAKE}", "load data", "suspend data", "resume data"),
        *(f"remove {METER}", f"remove {BRAKE}", f"remove {GATE}"),
    ]
    assert watcher.notes[-1] == "watch no more"
    source = dm.all[SOURCE].devno
    assert str(dm.all["data"].live) == (
        f"0 256 linear {source} 0\n256 1792 snapshot-origin {source}"
    )
    assert not brake.is_on
    brake.off()
    assert len(dm.calls) == 8


def test_every_live_table_was_announced_before_and_is_alone_after(
    dm: Dm, brake: Brake, told: list[LiveTables]
) -> None:
    seen: list[tuple[str, Table]] = []
    resume = dm.resume

    def watched(name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        before, coming = dm.all[name].live, dm.all[name].inactive
        uuid = dm.all[name].uuid
        allowed = told[-1].layers[uuid] if uuid else told[-1].origin
        assert allowed == {str(before).encode(), str(coming).encode()}
        resume(name, lockfs=lockfs, flush=flush)
        seen.append((name, dm.all[name].live))

    dm.resume = watched  # type: ignore[method-assign] # a spy
    brake.on(500)
    brake.advance([segment(3)])
    brake.on(900)
    for name in ("data", GATE, BRAKE):
        allowed = told[-1].layers[dm.all[name].uuid] if name != "data" else told[-1].origin
        assert allowed == {str(dm.all[name].live).encode()}
    brake.off()
    assert told[-1] == LiveTables(frozenset([str(dm.all["data"].live).encode()]))
    assert [name for name, _ in seen] == ["data", GATE, BRAKE, BRAKE, BRAKE, "data"]


def test_nothing_is_released_that_is_not_retired(dm: Dm, brake: Brake) -> None:
    brake.on(500)
    dm.held = [0, 1, 3 * SEGMENT, 5 * SEGMENT + 7]
    assert brake.held() == Held(4, (segment(0), segment(3), segment(5)))
    dm.calls.clear()
    assert not brake.advance([segment(0)])
    assert not brake.advance([segment(0), segment(3)], room=Sectors(SEGMENT - 1))
    assert f"load {GATE}" in dm.calls
    assert f"load {BRAKE}" not in dm.calls
    assert brake.advance([segment(0), segment(3)], room=Sectors(SEGMENT))
    assert f"load {BRAKE}" in dm.calls


def test_all_goes_when_all_that_is_held_is_retired(dm: Dm, brake: Brake) -> None:
    brake.on(500)
    dm.held = [0, 3 * SEGMENT]
    assert brake.advance([segment(0), segment(3)])
    calls = len(dm.calls)
    assert brake.advance([segment(0), segment(3)])
    assert len(dm.calls) == calls, "there was nothing to do"


def test_brake_that_a_failed_swap_left_open_is_closed_by_the_next_advance(
    dm: Dm, brake: Brake
) -> None:
    brake.on(500)
    dm.fail[f"resume {BRAKE}"] = DmFailed("resume", BRAKE, "Invalid argument")
    with pytest.raises(DmFailed):
        brake.advance([segment(0)])
    dm.fail.clear()
    dm.calls.clear()
    assert brake.advance([segment(0)])
    assert dm.calls == [f"load {BRAKE}", f"resume {BRAKE}"]


@pytest.mark.parametrize(
    "broken", ["create dmcopy-j-meter", "resume data", "create dmcopy-j-gate", "watcher"]
)
def test_brake_that_does_not_go_on_leaves_nothing(
    dm: Dm, brake: Brake, watcher: type[Watcher], broken: str
) -> None:
    before = dm.all["data"].live
    watcher.fail = broken == "watcher"
    dm.fail[broken] = DmFailed("do", broken, "no")
    with pytest.raises(DmcopyError):
        brake.on(500)
    assert not brake.is_on
    assert dm.all["data"].live == before
    assert set(dm.all) == {SOURCE, "data"}
    assert watcher.notes[-1:] in ([], ["watch no more"])


def test_off_that_failed_holds_nothing_and_is_made_good_by_the_next_on(
    dm: Dm, brake: Brake
) -> None:
    brake.on(500)
    dm.fail["resume data"] = DmFailed("resume", "data", "Invalid argument")
    with pytest.raises(DmFailed):
        brake.off()
    assert not brake.is_on
    assert "delay" not in dm.all[BRAKE].live.kinds()
    dm.fail.clear()
    brake.on(700)
    assert "delay" in dm.all[BRAKE].live.kinds()
    brake.off()
    assert set(dm.all) == {SOURCE, "data"}


def test_table_of_a_stranger_is_not_braked_and_not_overwritten(dm: Dm, brake: Brake) -> None:
    foreign = Table.parse(f"0 {LENGTH} linear 8:0 0")
    ours, dm.all["data"].live = dm.all["data"].live, foreign
    with pytest.raises(PointInTimeLost, match="replaced"):
        brake.on(500)
    dm.all["data"].live = ours
    brake.on(500)
    dm.all["data"].live = foreign
    brake.off()
    assert dm.all["data"].live == foreign
    assert set(dm.all) == {SOURCE, "data"}


@pytest.mark.parametrize("milliseconds", [0, -1, 2001])
def test_no_write_is_held_for_longer_than_the_limit(brake: Brake, milliseconds: int) -> None:
    with pytest.raises(ValueError, match="hold limit"):
        brake.on(milliseconds)
