"""Quantities and their conversions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy import units
from dmcopy.units import Bytes, Chunks, Sectors

COUNT = st.integers(0, 1 << 50)
UNIT = st.integers(1, 1 << 20)


@given(COUNT)
def test_sectors_survive_the_way_to_bytes_and_back(n: int) -> None:
    assert units.to_sectors(units.to_bytes(Sectors(n))) == n


@given(COUNT, st.integers(1, 511))
def test_bytes_that_are_no_sectors_are_refused_or_cut_by_name(n: int, rest: int) -> None:
    with pytest.raises(ValueError, match="not a multiple of 512"):
        units.to_sectors(Bytes(n * 512 + rest))
    assert units.sectors_down(Bytes(n * 512 + rest)) == n


@given(COUNT, UNIT)
def test_rounding_brackets_the_value(n: int, to: int) -> None:
    down, up = units.round_down(Sectors(n), Sectors(to)), units.round_up(Sectors(n), Sectors(to))
    assert down % to == up % to == 0
    assert down <= n <= up
    assert up - down in (0, to)


@given(COUNT, UNIT)
def test_chunk_holds_its_sector(sector: int, size: int) -> None:
    chunk = units.chunk_of(Sectors(sector), Sectors(size))
    start = units.chunk_start(chunk, Sectors(size))
    assert start <= sector < start + size
    assert units.chunks_for(Sectors(sector + 1), Sectors(size)) == Chunks(chunk + 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4k", 4096),
        ("64KiB", 65536),
        ("64 kb", 65536),
        ("1g", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("2T", 2 << 40),
        ("512B", 512),
    ],
)
def test_size_of_a_person_is_binary(text: str, value: int) -> None:
    assert units.parse_size(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1q", "1..5k", "k", "1.0001k", "0x10", "1 2", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (512, "512 B"), (65536, "64.0 KiB"), (3 << 29, "1.5 GiB")]
)
def test_size_is_written_for_a_person(n: int, text: str) -> None:
    assert units.format_size(n) == text


@pytest.mark.parametrize("n", [0, -1, -2, 3, 6, 4097])
def test_power_of_two_is_told_from_others(n: int) -> None:
    assert not units.is_power_of_two(n)
    assert all(units.is_power_of_two(1 << power) for power in range(60))
