"""What every kind of destination promises, as functions over a `Place`.

tests/contract runs the list over the kinds that work anywhere, tests/lab over those that need
a kernel of their own.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dmcopy.core.extent import Extent
from dmcopy.destinations import KINDS, parse
from dmcopy.destinations.base import Can, Destination, Surroundings
from dmcopy.errors import Refused
from dmcopy.units import Sectors, is_power_of_two, to_bytes

SEGMENT = Sectors(2048)


@dataclass
class Place:
    """A destination for an image of *length*, and an independent way to look at it."""

    destination: Destination
    length: Sectors
    around: Surroundings
    content: Callable[[], bytes]  # what is there after the session, length bytes; b"" if none

    @property
    def whole(self) -> Extent:
        return Extent(Sectors(0), self.length)

    @property
    def segments(self) -> list[Extent]:
        return list(self.whole.split(SEGMENT, align=SEGMENT))


def pattern(at: Extent, seed: int = 0) -> bytes:
    """Give bytes that say where they belong: f(seed, sector)."""
    return b"".join(b"%08d%024d" % (seed, n) * 16 for n in range(at.start, at.end))


def buffer(data: bytes) -> memoryview:
    """Give *data* in page-aligned memory, as the engine's buffers are."""
    pages = mmap.mmap(-1, max(len(data), 1))
    pages[: len(data)] = data
    return memoryview(pages)[: len(data)]


def read_back_what_was_written(place: Place) -> None:
    into = buffer(bytes(to_bytes(SEGMENT)))
    with place.destination.open(place.length, place.around) as session:
        for at in place.segments:
            session.write(at, buffer(pattern(at)))
        session.flush()
        for at in place.segments:
            session.read(at, into[: at.size])
            assert bytes(into[: at.size]) == pattern(at)
        session.complete()
    assert place.content() == pattern(place.whole)


def segments_come_in_any_order(place: Place) -> None:
    order = place.segments
    random.Random(1).shuffle(order)  # the same order in every run
    with place.destination.open(place.length, place.around) as session:
        for at in order:
            session.write(at, buffer(pattern(at)))
        session.flush()
        session.complete()
    assert place.content() == pattern(place.whole)


def zero_reads_as_zeroes_fresh_or_written_before(place: Place) -> None:
    fresh, again, *rest = place.segments
    into = buffer(bytes(to_bytes(SEGMENT)))
    with place.destination.open(place.length, place.around) as session:
        session.zero(fresh)
        session.write(again, buffer(pattern(again)))
        session.flush()
        session.zero(again)
        for at in rest:
            session.write(at, buffer(pattern(at)))
            session.zero(at)
            session.write(at, buffer(pattern(at, seed=2)))
        for at in (fresh, again):
            session.read(at, into[: at.size])
            assert not any(into[: at.size])
        session.flush()
        session.complete()
    zeroes = bytes(fresh.size + again.size)
    assert place.content() == zeroes + b"".join(pattern(at, seed=2) for at in rest)


def last_write_wins_without_a_flush_between(place: Place) -> None:
    into = buffer(bytes(to_bytes(SEGMENT)))
    with place.destination.open(place.length, place.around) as session:
        for seed in (1, 2):
            for at in place.segments:
                session.write(at, buffer(pattern(at, seed)))
        for at in place.segments:
            session.read(at, into[: at.size])
            assert bytes(into[: at.size]) == pattern(at, 2)
        session.complete()
    assert place.content() == pattern(place.whole, 2)


def extents_that_are_not_multiples_of_a_page_are_right(place: Place) -> None:
    block = place.around.sysfs.queue(place.around.source).logical_block // 512 or 1
    cuts = [0, 1, 9, 16, 17, 24, 100]
    pieces = [
        Extent.between(Sectors(a * block), Sectors(b * block)) for a, b in itertools.pairwise(cuts)
    ]
    into = buffer(bytes(to_bytes(SEGMENT)))
    with place.destination.open(place.length, place.around) as session:
        for at in place.segments:
            session.write(at, buffer(pattern(at)))
        for at in pieces:
            session.write(at, buffer(pattern(at, 7)))
            session.read(at, into[: at.size])
            assert bytes(into[: at.size]) == pattern(at, 7)
        session.zero(pieces[1])
        session.complete()
    expected = bytearray(pattern(place.whole))
    for at in pieces:
        expected[at.offset : at.offset + at.size] = pattern(at, 7)
    expected[pieces[1].offset : pieces[1].offset + pieces[1].size] = bytes(pieces[1].size)
    assert place.content() == bytes(expected)


def what_lies_outside_the_image_is_not_touched(place: Place) -> None:
    outside = Extent(place.length, Sectors(8))
    with place.destination.open(place.length, place.around) as session:
        for call in (session.write, session.read):
            with pytest.raises(ValueError, match="does not fit"):
                call(outside, buffer(bytes(outside.size)))
            with pytest.raises(ValueError, match="does not fit"):
                call(place.segments[0], buffer(bytes(512)))
        with pytest.raises(ValueError, match="does not fit"):
            session.zero(Extent(Sectors(place.length - 1), Sectors(2)))


def while_it_is_open_nobody_else_may_have_it(place: Place) -> None:
    with place.destination.open(place.length, place.around):
        with pytest.raises(Refused):
            place.destination.check(place.length, place.around)
        with (
            pytest.raises(Refused),
            place.destination.open(place.length, place.around),
        ):
            pass
    place.destination.check(place.length, place.around)


def failed_session_leaves_nothing_open_or_behind(place: Place) -> None:
    before = set(os.listdir("/proc/self/fd"))

    def fail() -> None:
        with place.destination.open(place.length, place.around) as session:
            session.write(place.segments[0], buffer(pattern(place.segments[0])))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert set(os.listdir("/proc/self/fd")) == before
    assert not any(os.path.lexists(path) for path in place.destination.leftovers())


def check_changes_nothing(place: Place) -> None:
    before = place.content()
    place.destination.check(place.length, place.around)
    assert place.content() == before
    assert not any(os.path.lexists(path) for path in place.destination.leftovers())


def name_reads_back_as_the_same_destination(place: Place) -> None:
    assert parse(str(place.destination)) == place.destination
    assert type(place.destination) in KINDS
    assert str(place.destination).startswith(f"{place.destination.kind}:")


def identity_stays_the_same(place: Place) -> None:
    first = place.destination.identity(place.around)
    assert first == place.destination.identity(place.around)
    assert all(isinstance(value, (str, int)) for value in first.values())


def alignment_is_a_power_of_two_of_sectors(place: Place) -> None:
    alignment = place.destination.segment_alignment()
    assert is_power_of_two(alignment)
    assert alignment % 512 == 0


def kind_says_that_it_can_what_the_list_asks_for(place: Place) -> None:
    assert place.destination.can == Can.RANDOM | Can.ZERO | Can.REREAD


PROMISES: tuple[Callable[[Place], None], ...] = (
    read_back_what_was_written,
    segments_come_in_any_order,
    zero_reads_as_zeroes_fresh_or_written_before,
    last_write_wins_without_a_flush_between,
    extents_that_are_not_multiples_of_a_page_are_right,
    what_lies_outside_the_image_is_not_touched,
    while_it_is_open_nobody_else_may_have_it,
    failed_session_leaves_nothing_open_or_behind,
    check_changes_nothing,
    name_reads_back_as_the_same_destination,
    identity_stays_the_same,
    alignment_is_a_power_of_two_of_sectors,
    kind_says_that_it_can_what_the_list_asks_for,
)
