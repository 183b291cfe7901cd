"""What is left to copy: each piece once, in the order that is asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.extent import Extent, merge
from dmcopy.core.segment import Rank, Remaining, SegmentList
from dmcopy.units import Sectors


def at(start: int, length: int) -> Extent:
    return Extent(Sectors(start), Sectors(length))


def remaining(length: int, size: int, *done: Extent) -> Remaining:
    return Remaining(SegmentList(Sectors(length), Sectors(size)), done)


def all_of(left: Remaining) -> list[Extent]:
    return list(iter(left.take, None))


def test_with_nothing_done_it_is_the_list_in_its_order() -> None:
    segments = SegmentList(Sectors(35), Sectors(8))
    assert all_of(Remaining(segments)) == list(segments)


def test_what_is_done_is_not_handed_out() -> None:
    left = remaining(35, 8, at(0, 16), at(24, 8))
    assert left.length == 11
    assert all_of(left) == [at(16, 8), at(32, 3)]
    assert not left


def test_segment_ends_where_a_done_piece_begins() -> None:
    assert all_of(remaining(16, 8, at(3, 2))) == [at(0, 3), at(5, 3), at(8, 8)]


def test_what_is_preferred_comes_first_and_only_once() -> None:
    left = remaining(64, 8)
    assert left.take() == at(0, 8)
    left.prefer([at(40, 1), at(17, 9), at(0, 8)], Rank.ASKED)
    expected = [at(40, 8), at(16, 8), at(24, 8), at(8, 8), at(32, 8), at(48, 8), at(56, 8)]
    assert all_of(left) == expected


def test_new_preference_replaces_the_old_one() -> None:
    left = remaining(64, 8)
    left.prefer([at(56, 8)], Rank.ASKED)
    left.prefer([at(48, 8)], Rank.ASKED)
    assert left.take() == at(48, 8)
    assert left.take() == at(0, 8)


extents = st.builds(at, st.integers(0, 300), st.integers(1, 90))


@given(st.integers(1, 400), st.integers(1, 64), st.lists(extents), st.lists(st.lists(extents)))
def test_everything_that_is_not_done_is_handed_out_exactly_once(
    length: int, size: int, done: list[Extent], wishes: list[list[Extent]]
) -> None:
    left = remaining(length, size, *done)
    taken: list[Extent] = []
    for wish in wishes:
        left.prefer(wish, Rank.ASKED)
        piece = left.take()
        taken += [piece] if piece is not None else []
    taken += all_of(left)
    covered = [sector for piece in taken for sector in range(piece.start, piece.end)]
    over = {sector for piece in merge(done) for sector in range(piece.start, piece.end)}
    assert sorted(covered) == [sector for sector in range(length) if sector not in over]
    assert all(piece.start // size == (piece.end - 1) // size for piece in taken)


@given(st.integers(1, 400), st.integers(1, 64), st.lists(extents, min_size=1))
def test_preferred_pieces_come_before_all_others(
    length: int, size: int, wish: list[Extent]
) -> None:
    left = remaining(length, size)
    left.prefer(wish, Rank.ASKED)
    taken = all_of(left)
    wanted = [
        any(one.start // size <= piece.start // size <= (one.end - 1) // size for one in wish)
        for piece in taken
    ]
    assert wanted == sorted(wanted, reverse=True)
