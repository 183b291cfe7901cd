"""Extents: cover, disjoint, in bounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.extent import Extent, merge
from dmcopy.core.segment import SegmentList
from dmcopy.units import Sectors

EXTENTS = st.builds(
    lambda start, length: Extent(Sectors(start), Sectors(length)),
    st.integers(0, 2000),
    st.integers(1, 300),
)


def _sectors(*extents: Extent) -> set[int]:
    return {sector for extent in extents for sector in range(extent.start, extent.end)}


@given(EXTENTS, EXTENTS)
def test_clip_is_what_both_have(a: Extent, b: Extent) -> None:
    both = a.clip(b)
    assert _sectors(a) & _sectors(b) == (_sectors(both) if both else set())


@given(EXTENTS, st.integers(1, 32), st.integers(1, 8))
def test_split_covers_in_order_and_cuts_at_the_alignment(
    extent: Extent, align: int, times: int
) -> None:
    size = align * times
    pieces = list(extent.split(Sectors(size), align=Sectors(align)))
    assert pieces[0].start == extent.start
    assert pieces[-1].end == extent.end
    for before, after in pairwise(pieces):
        assert before.end == after.start
        assert after.start % align == 0
    assert all(0 < piece.length <= size for piece in pieces)


@pytest.mark.parametrize(("size", "align"), [(4, 8), (12, 8), (8, 0), (8, -8)])
def test_split_that_cannot_keep_the_alignment_is_refused(size: int, align: int) -> None:
    with pytest.raises(ValueError, match="alignment"):
        list(Extent(Sectors(0), Sectors(9)).split(Sectors(size), align=Sectors(align)))


@given(st.lists(EXTENTS, max_size=12))
def test_merge_keeps_every_sector_and_leaves_gaps(extents: list[Extent]) -> None:
    before = list(extents)
    merged = merge(extents)
    assert extents == before
    assert _sectors(*merged) == _sectors(*extents)
    assert all(a.end < b.start for a, b in pairwise(merged))


def test_nothing_lies_between_a_sector_and_itself() -> None:
    with pytest.raises(ValueError, match="no sectors"):
        Extent.between(Sectors(5), Sectors(5))
    assert Extent.between(Sectors(5), Sectors(7)) == Extent(Sectors(5), Sectors(2))


def test_extent_in_bytes_is_512_times_as_much() -> None:
    extent = Extent(Sectors(8), Sectors(16))
    assert (extent.offset, extent.size) == (4096, 8192)


@given(st.integers(0, 10_000), st.integers(1, 999))
def test_segments_cover_the_device_once_in_order(length: int, size: int) -> None:
    segments = SegmentList(Sectors(length), Sectors(size))
    listed = list(segments)
    assert len(listed) == len(segments)
    assert sum(segment.length for segment in listed) == length
    assert all(segment.start == index * size for index, segment in enumerate(listed))
    assert [segments[index] for index in range(len(segments))] == listed


def test_segment_out_of_the_list_is_an_error() -> None:
    with pytest.raises(IndexError):
        SegmentList(Sectors(10), Sectors(4))[3]
    with pytest.raises(ValueError, match="segments of 0"):
        SegmentList(Sectors(10), Sectors(0))
