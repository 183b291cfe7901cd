"""The map: each cell says what matters most, and the text says what waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmcopy.core.extent import Extent, merge
from dmcopy.core.image_map import ImageMap, Kind, Waiting
from dmcopy.report.map_text import map_lines
from dmcopy.units import Sectors

LENGTH = Sectors(1000)
EXTENTS = st.lists(
    st.builds(
        lambda start, length: Extent(Sectors(start), Sectors(min(length, 1000 - start))),
        st.integers(0, 999),
        st.integers(1, 200),
    ),
    max_size=8,
).map(merge)


def at(start: int, length: int) -> Extent:
    return Extent(Sectors(start), Sectors(length))


def test_cell_is_what_matters_most() -> None:
    image = ImageMap(
        job="j",
        length=LENGTH,
        chunk=Sectors(8),
        copied=[at(0, 350), at(900, 100)],
        retired=[at(0, 200)],
        saved=[at(50, 10), at(450, 8)],
        copying=[at(500, 50)],
        gated=[at(700, 10)],
        waiting=[Waiting("brake", 2, (at(800, 1),))],
    )
    size, kinds = image.cells(10)
    assert size == 100
    assert kinds == [
        Kind.RETIRED, Kind.RETIRED, Kind.COPIED, Kind.PARTLY, Kind.SAVED,
        Kind.COPYING, Kind.SOURCE, Kind.HELD, Kind.HELD, Kind.COPIED,
    ]  # fmt: skip


@given(EXTENTS, EXTENTS, st.integers(1, 2000))
def test_cells_agree_with_a_count_of_sectors(
    copied: list[Extent], saved: list[Extent], most: int
) -> None:
    image = ImageMap(job="j", length=LENGTH, chunk=Sectors(8), copied=copied, saved=saved)
    size, kinds = image.cells(most)
    assert len(kinds) <= max(most, 1)
    done = {sector for extent in copied for sector in range(extent.start, extent.end)}
    kept = {sector for extent in saved for sector in range(extent.start, extent.end)}
    for index, kind in enumerate(kinds):
        cell = set(range(index * size, min((index + 1) * size, LENGTH)))
        if cell <= done:
            assert kind is Kind.COPIED
        elif cell & done:
            assert kind is Kind.PARTLY
        else:
            assert kind is (Kind.SAVED if cell & kept else Kind.SOURCE)


def test_lines_say_all_of_it_in_the_width_of_the_terminal() -> None:
    waiting = [
        Waiting("gate", 1, (at(8, 8),), seconds=0.01, most_seconds=0.5),
        Waiting("saving", 2, mean_seconds=0.00123),
    ]
    image = ImageMap(
        job="j", length=LENGTH, chunk=Sectors(8), copied=[at(0, 500)], waiting=waiting,
        gated=[at(8, 8)],
    )  # fmt: skip
    for width in (40, 80, 200):
        lines = map_lines(image, width=width)
        drawn = [line for line in lines if set(line[13:]) <= set("H>R#+s.") and line[13:]]
        assert all(len(line) <= width for line in drawn)
        assert len("".join(line[13:] for line in drawn)) == len(
            image.cells(len(drawn) * 64)[1]
        ) or (len(drawn) > 0)
    text = "\n".join(map_lines(image))
    assert "1 write waits until the segment is copied, at 4.0 KiB+4.0 KiB, for 0.010 s" in text
    assert "2 writes wait until the old content is saved; writes of late took 1.23 ms" in text
    assert "no write waits" not in text
    assert "no write waits" in "\n".join(map_lines(ImageMap(job="j", length=LENGTH, chunk=None)))


def test_json_is_in_bytes() -> None:
    image = ImageMap(
        job="j", length=LENGTH, chunk=Sectors(8), saved=[at(8, 16)],
        waiting=[Waiting("gate", 1, (at(8, 8),), 0.1, 0.5)],
    )  # fmt: skip
    said = image.as_json()
    assert (said["event"], said["length_bytes"], said["chunk_bytes"]) == ("map", 512_000, 4096)
    assert said["saved"] == [[4096, 8192]]
    assert said["waiting"] == [
        {
            "why": "gate", "writes": 1, "extents": [[4096, 4096]], "seconds": 0.1,
            "most_seconds": 0.5, "mean_seconds": None,
        }
    ]  # fmt: skip
