"""dm-stats: what is asked, and what the kernel answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core import dmstats
from dmcopy.core.dmstats import Area
from dmcopy.core.extent import Extent
from dmcopy.units import Sectors

# Linux 6.1.176, @stats_print, while a delay target below held four writes
PRINTED = """\
0+2048 0 0 0 0 2 1 16 3040 2 430 860 0 430
2048+2048 0 0 0 0 0 0 0 0 0 0 0 0 0
10240+2048 0 0 0 0 1 0 8 1520 1 420 420 0 420
12288+100 3 0 24 1 0 0 0 0 0 1 1 1 0"""


def test_io_in_progress_and_writes_are_read_area_by_area() -> None:
    assert dmstats.areas(PRINTED) == [
        Area(Extent(Sectors(0), Sectors(2048)), 2, 2),
        Area(Extent(Sectors(2048), Sectors(2048)), 0, 0),
        Area(Extent(Sectors(10240), Sectors(2048)), 1, 1),
        Area(Extent(Sectors(12288), Sectors(100)), 0, 0),
    ]
    assert dmstats.areas("") == []


@pytest.mark.parametrize("line", ["0+8 1 2 3", "x", "0+8" + " 0" * 14, "-1+8" + " 0" * 13])
def test_line_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of @stats_print"):
        dmstats.areas(line)


def test_messages_are_as_the_kernel_reads_them() -> None:
    assert dmstats.create_message(Sectors(2048), "dmcopy-j") == "@stats_create - 2048 dmcopy-j"
    assert dmstats.region("7") == 7
    assert dmstats.print_message(7) == "@stats_print 7"
    assert dmstats.take_message(7) == "@stats_print_clear 7"
    assert dmstats.list_message("dmcopy-j") == "@stats_list dmcopy-j"
    assert dmstats.delete_message(7) == "@stats_delete 7"


def test_regions_are_read() -> None:
    listed = "0: 0+32768 512 dmcopy-j -\n12: 0+32768 8192 dmcopy-j -"  # Linux 6.1
    assert dmstats.regions(listed) == [0, 12]
    assert dmstats.regions("") == []


@given(st.integers(1, 1 << 44), st.integers(1, 1 << 20))
def test_areas_are_whole_segments_and_not_too_many(length: int, segment: int) -> None:
    area = dmstats.area_size(Sectors(length), Sectors(segment))
    assert area % segment == 0
    assert -(-length // area) <= dmstats.MOST_AREAS
    if area > segment:
        assert -(-length // (area - segment)) > dmstats.MOST_AREAS
