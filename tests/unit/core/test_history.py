"""The history of a copy: bounded, whole, and the same after it was kept."""

from __future__ import annotations

import json

import pytest

from dmcopy.core.extent import Extent
from dmcopy.core.history import (
    MOST_CELLS,
    MOST_HOLDS,
    MOST_SAMPLES,
    Cell,
    Copied,
    Held,
    History,
    Sample,
    cell_size,
)
from dmcopy.units import Bytes, Sectors

SEGMENT = Sectors(8192)


def _sample(at: float, phase: str = "copy", writes: int = 3) -> Sample:
    return Sample(at=at, phase=phase, span=1.0, writes=writes, write_seconds=0.25)


def _full(count: int) -> History:
    history = History(Sectors(100 * SEGMENT), SEGMENT)
    history.add(_sample(-1.0, "before", 7))
    for second in range(count):
        history.add(_sample(float(second)))
    history.add(_sample(float(count), "after", 11))
    return history


@pytest.mark.parametrize("count", [10, 700, 5000])
def test_series_keeps_the_whole_time_in_bounded_room(count: int) -> None:
    history = _full(count)
    assert len(history.samples) <= MOST_SAMPLES
    assert sum(sample.writes for sample in history.samples) == 3 * count + 18
    assert sum(sample.span for sample in history.samples) == pytest.approx(count + 2)
    assert [sample.at for sample in history.samples] == sorted(s.at for s in history.samples)
    phases = [sample.phase for sample in history.samples]
    assert phases[0] == "before"
    assert phases[-1] == "after"
    assert phases.count("before") == phases.count("after") == 1, "no pair reaches over a phase"


def test_joined_samples_keep_the_mean_latency() -> None:
    one = Sample(at=1.0, phase="copy", span=1.0, writes=1, write_seconds=1.0)
    both = one.joined(Sample(at=2.0, phase="copy", span=1.0, writes=3, write_seconds=1.0))
    assert both.write_seconds / both.writes == 0.5
    assert both.at == 2.0


def test_longest_holds_are_kept_in_order_of_time() -> None:
    history = History(SEGMENT, SEGMENT)
    for number in range(5000):
        history.held(Held(float(number), "retire", 0.001 if number != 17 else 0.5))
    assert len(history.holds) <= MOST_HOLDS
    assert len(history.holds) + history.holds_lost == 5000
    assert Held(17.0, "retire", 0.5) in history.holds
    assert history.holds == sorted(history.holds)


@pytest.mark.parametrize("segments", [1, 1023, 1024, 1025, 1_000_003])
def test_cells_cover_any_image_and_are_few(segments: int) -> None:
    length = Sectors(segments * SEGMENT - 8)
    history = History(length, SEGMENT)
    assert history.cell_size % SEGMENT == 0
    assert 1 <= len(history.cells) <= MOST_CELLS
    assert len(history.cells) * history.cell_size >= length
    last = Extent.between(Sectors((segments - 1) * SEGMENT), length)
    history.copied(2.0, [Copied(last, Bytes(4096))])
    assert history.cells[-1] == Cell(2.0, last.length, Sectors(8))


def test_cell_adds_up_its_segments() -> None:
    history = History(Sectors(4096 * SEGMENT), SEGMENT)
    assert history.cell_size == 4 * SEGMENT == cell_size(history.length, SEGMENT)
    segments = [Extent(Sectors(index * SEGMENT), SEGMENT) for index in range(4)]
    history.copied(1.0, [Copied(extent, Bytes(512)) for extent in segments[:2]])
    history.copied(5.0, [Copied(extent, Bytes(0)) for extent in segments[2:]])
    assert history.cells[0] == Cell(5.0, Sectors(4 * SEGMENT), Sectors(2))
    assert history.cells[1] == Cell()


def test_history_is_the_same_after_it_was_kept() -> None:
    history = _full(50)
    history.held(Held(0.0, "begin", 0.001))
    history.copied(1.0, [Copied(Extent(Sectors(0), SEGMENT), Bytes(1024))])
    again = History.from_json(json.loads(json.dumps(history.as_json())))
    assert again is not None
    assert again.as_json() == history.as_json()


def test_history_of_another_version_is_not_read() -> None:
    assert History.from_json({"version": 2}) is None
    assert History.from_json(None) is None
