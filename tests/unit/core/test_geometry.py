"""Sizes that fit together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core import geometry
from dmcopy.errors import UsageError
from dmcopy.units import Bytes, Sectors, to_bytes

CHUNKS = st.sampled_from([8, 32, 128, 512, 2048]).map(Sectors)


@pytest.mark.parametrize("chunk", [0, 512, 2048, 5000, 12288, 2 << 20])
def test_chunk_that_cannot_be_is_refused(chunk: int) -> None:
    with pytest.raises(UsageError, match="power of two"):
        geometry.check_chunk(Bytes(chunk))


def test_chunk_must_hold_whole_blocks() -> None:
    assert geometry.check_chunk(Bytes(4096), Bytes(512), Bytes(4096)) == 8
    with pytest.raises(UsageError, match="multiple"):
        geometry.check_chunk(Bytes(4096), Bytes(8192))


@given(st.integers(1, 8 << 20), CHUNKS, st.sampled_from([512, 4096, 65536, 3 * 65536]))
def test_segment_is_at_least_what_was_wanted_and_aligned(
    wanted: int, chunk: Sectors, alignment: int
) -> None:
    size = geometry.segment_size(Bytes(wanted), chunk, Bytes(alignment))
    assert to_bytes(size) >= wanted
    assert size % chunk == 0
    assert to_bytes(size) % alignment == 0
    assert to_bytes(size) < wanted + to_bytes(chunk) * alignment


@pytest.mark.parametrize("wanted", [0, -1, 1 << 40])
def test_segment_that_cannot_be_is_refused(wanted: int) -> None:
    with pytest.raises(UsageError, match="segment"):
        geometry.segment_size(Bytes(wanted), Sectors(128))


@given(st.integers(1, 1 << 22), CHUNKS)
def test_never_overflow_holds_what_a_kernel_would_write(length: int, chunk: Sectors) -> None:
    """Count chunks as dm-snap-persistent.c does: each exception the next free one."""
    per_area = geometry.exceptions_per_area(chunk)
    chunks = -(-length // chunk)
    areas_begun = chunks // per_area + 1  # a full area has the next one zeroed
    needed = 1 + areas_begun + chunks
    assert geometry.never_overflow(Sectors(length), chunk) >= needed * chunk


def test_capacity_that_was_measured() -> None:
    # KERNEL.md 1: 1 MiB of COW with 4 KiB chunks takes 254 exceptions
    assert geometry.never_overflow(Sectors(254 * 8), Sectors(8)) <= 1 * 2048 + 8


@given(
    st.integers(1, 8 << 20),
    CHUNKS,
    st.sampled_from([512, 4096]),
    st.integers(1, 24).map(lambda disks: disks * 65536) | st.sampled_from([0, 13 * 524288]),
)
def test_whole_stripes_never_make_segments_absurd(
    wanted: int, chunk: Sectors, alignment: int, stripe: int
) -> None:
    if geometry.stripe_aligned(Bytes(wanted), chunk, Bytes(alignment), Bytes(stripe)):
        unit = Bytes(math.lcm(alignment, stripe))
        size = to_bytes(geometry.segment_size(Bytes(wanted), chunk, unit))
        assert size % stripe == 0
        assert size <= max(wanted, 16 << 20)


def test_stripe_that_is_no_power_of_two_works_with_any_chunk() -> None:
    stripe = Bytes(3 * 65536)  # KERNEL.md 9: raid5 of 4 with 64 KiB
    for chunk in (Sectors(128), Sectors(512)):
        assert geometry.stripe_aligned(Bytes(4 << 20), chunk, Bytes(512), stripe)


def test_stripe_whose_common_multiple_is_huge_is_not_aligned_to() -> None:
    # 13 data disks with 1 MiB, and a chunk of 512 KiB: 13 MiB; with 17 of 3 MiB no more
    assert geometry.stripe_aligned(Bytes(4 << 20), Sectors(1024), Bytes(512), Bytes(13 << 20))
    assert not geometry.stripe_aligned(Bytes(4 << 20), Sectors(1024), Bytes(512), Bytes(51 << 20))
    assert geometry.stripe_aligned(Bytes(64 << 20), Sectors(1024), Bytes(512), Bytes(51 << 20)) is (
        False  # two stripes would be more than was wanted
    )
    assert not geometry.stripe_aligned(Bytes(4 << 20), Sectors(1024), Bytes(512), Bytes(0))
