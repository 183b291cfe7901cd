"""The tables of the brake: all is mapped, and nothing that must be saved gets past the saving."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.core.targets.delay import Delay
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import SnapshotOrigin
from dmcopy.stack.gate import (
    MOST_LINES,
    braking,
    leads_to_ours,
    not_retired,
    over,
    saving,
    worth_retiring,
)
from dmcopy.units import Sectors

SOURCE, GATE = "254:0", "254:9"
LENGTH = Sectors(1000)
RETIRED = st.lists(
    st.builds(
        lambda start, length: Extent(Sectors(start), Sectors(length)),
        st.integers(0, 1100),
        st.integers(1, 60),
    ),
    max_size=80,
)


def _sectors(extents: list[Extent]) -> set[int]:
    return {sector for extent in extents for sector in range(extent.start, extent.end)}


@given(RETIRED)
def test_tables_are_few_lines_over_the_whole_device_and_agree(extents: list[Extent]) -> None:
    retired = worth_retiring(LENGTH, extents)
    assert _sectors(retired) <= _sectors(extents)
    gate = saving(LENGTH, SOURCE, retired)
    brake = braking(LENGTH, SOURCE, GATE, retired, milliseconds=300)
    for table in (gate, brake):
        assert table.length == LENGTH
        assert 0 < len(table) <= MOST_LINES
        assert Table.parse(str(table)) == table
        linear = [row for row in table.rows if isinstance(row.target, Linear)]
        assert all(row.target.params == f"{SOURCE} {row.start}" for row in linear)
        assert _sectors([Extent(r.start, r.target.length) for r in linear]) == _sectors(retired)
    assert {row.target.params for row in gate.rows if isinstance(row.target, SnapshotOrigin)} <= {
        SOURCE
    }
    for row in brake.rows:
        if isinstance(row.target, Delay):
            assert row.target.devices() == (GATE,) * 3
            assert [path.offset for path in row.target.paths] == [row.start] * 3
            assert [path.milliseconds for path in row.target.paths] == [0, 300, 0]


@given(RETIRED, RETIRED)
def test_what_is_not_retired_is_the_rest(extents: list[Extent], within: list[Extent]) -> None:
    retired = worth_retiring(LENGTH, extents)
    rest = not_retired(within, retired)
    assert _sectors(rest) == _sectors(within) - _sectors(retired)


def test_only_the_largest_ranges_are_retired_when_there_are_many() -> None:
    small = [Extent(Sectors(start), Sectors(2)) for start in range(0, 900, 10)]
    large = Extent(Sectors(905), Sectors(50))
    retired = worth_retiring(LENGTH, [*small, large])
    assert large in retired
    assert len(saving(LENGTH, SOURCE, retired)) <= MOST_LINES


def test_delay_over_the_bare_source_is_not_made() -> None:
    with pytest.raises(ValueError, match="bare source"):
        braking(LENGTH, SOURCE, SOURCE, [], milliseconds=1)


@pytest.mark.parametrize(
    ("table", "ours"),
    [
        (saving(LENGTH, SOURCE, []), True),
        (saving(LENGTH, SOURCE, [Extent(Sectors(0), Sectors(8))]), True),
        (saving(LENGTH, SOURCE, [Extent(Sectors(0), LENGTH)]), True),
        (over(LENGTH, GATE), True),
        (braking(LENGTH, SOURCE, GATE, [], milliseconds=5), True),
        (over(LENGTH, "8:0"), False),
        (over(Sectors(8), SOURCE), False),
        (Table.parse(f"0 1000 linear {SOURCE} 8"), False),
        (Table.parse("0 1000 snapshot-origin 254:7"), False),
        (Table.parse(f"0 1000 snapshot {SOURCE} 254:1 P 8"), False),
        (Table(), False),
    ],
)
def test_origin_of_ours_is_known_by_any_of_its_tables(table: Table, *, ours: bool) -> None:
    assert leads_to_ours(table, SOURCE, [GATE], LENGTH) is ours
