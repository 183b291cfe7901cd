"""What a killed process left of a brake is found, and taken out without moving a sector."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.errors import PointInTimeLost
from dmcopy.kernel.dm import DmStatus
from dmcopy.stack import hold
from dmcopy.stack.adopt import Adopted, adopt, settle
from dmcopy.stack.gate import braking, over, saving
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.recover import Remains
from dmcopy.units import Sectors
from tests.unit.fake_dm import FakeDm
from tests.unit.stack.no_dead_man import NoDeadMan

LENGTH = Sectors(8192)
ORIGINAL = Table.parse(f"0 {LENGTH} linear 8:0 0")


class Dm(FakeDm):
    def status(self, name: str, *, flush: bool = True) -> list[DmStatus]:
        assert name == device_name("j", Role.SNAP)
        return [DmStatus(0, LENGTH, "snapshot", "16/4096 16")]


def extent(start: int, end: int) -> Extent:
    return Extent.between(Sectors(start), Sectors(end))


class Left:
    """A braked origin whose gate has retired more than its brake, as a kill may leave it."""

    def __init__(self, gate: Extent, brake: Extent) -> None:
        self.dm, self.remains = Dm(), Remains("j")

        def device(role: Role, table: Table) -> str:
            made = self.dm.add(device_name("j", role), str(table), uuid=device_uuid("j", role))
            info = self.dm.info(device_name("j", role))
            assert info is not None
            self.remains.devices[role] = info
            return made.devno

        source = device(Role.SOURCE, ORIGINAL)
        cow = device(Role.COW, Table.parse("0 4096 linear 8:16 0"))
        device(Role.SNAP, Table.parse(f"0 {LENGTH} snapshot {source} {cow} P 8"))
        gate_devno = device(Role.GATE, saving(LENGTH, source, [gate]))
        table = braking(LENGTH, source, gate_devno, [brake], milliseconds=500, only=[])
        meter = device(Role.METER, over(LENGTH, device(Role.BRAKE, table)))
        self.dm.add("data", str(over(LENGTH, meter)), opened=1)
        self.source = source

    def adopt(self, retired: Sequence[Extent]) -> Adopted:
        return adopt(
            self.dm, self.remains, name="data", original=ORIGINAL,
            length=ORIGINAL.length, chunk=Sectors(8), retired=retired,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("gate", "brake"), [(extent(0, 5632), extent(0, 5120)), (extent(0, 512), extent(0, 512))]
)
def test_origin_has_each_sector_where_it_was_when_the_brake_is_out(
    monkeypatch: pytest.MonkeyPatch, gate: Extent, brake: Extent
) -> None:
    monkeypatch.setattr(hold, "DeadMan", NoDeadMan)
    left = Left(gate, brake)
    adopted = left.adopt([gate])
    assert adopted.is_braked
    assert adopted.unsaved == (gate,)
    table = settle(left.dm, adopted, job="j", name="data", limit=2.0)
    assert table == saving(LENGTH, left.source, [gate])
    assert left.dm.table("data") == table
    assert table.length == LENGTH


def test_what_passes_by_and_is_not_on_record_is_lost() -> None:
    with pytest.raises(PointInTimeLost, match="were not saved, and that is not copied"):
        Left(extent(0, 5632), extent(0, 5120)).adopt([extent(0, 5120)])


def test_table_whose_lines_overlap_is_not_made() -> None:
    with pytest.raises(ValueError, match="the lines of a table meet at 5120"):
        saving(LENGTH, "254:0", [extent(0, 5120), extent(0, 5632)])
