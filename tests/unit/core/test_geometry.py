"""Sizes that fit together."""

from __future__ import annotations

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
