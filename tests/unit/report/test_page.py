"""The report: values in, a page out that holds them all and needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

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
)
from dmcopy.report.page import page
from dmcopy.units import MIB, Bytes, Sectors
from tests.unit.report import made_up
from tests.unit.report.page_tree import read

SECTIONS = ["progress", "holds", "writes", "image", "events"]
CHARTS = ["chart-progress", "chart-forecast", "chart-holds", "chart-latency", "chart-rate"]
SEGMENT = Sectors(8192)


def _drawings(text: str) -> Iterator[str]:
    """Give each outermost SVG of a page."""
    depth, start = 0, 0
    for found in re.finditer(r"<(/?)svg\b", text):
        if found[1]:
            depth -= 1
            if depth == 0:
                yield text[start : text.index(">", found.end()) + 1]
        else:
            start = start if depth else found.start()
            depth += 1


def test_page_is_well_formed_and_has_every_section_and_chart() -> None:
    text = page(made_up.subject())
    assert text.startswith("<!doctype html>\n<!-- dmcopy report -->\n")
    root = read(text)
    ids = [one.attributes["id"] for one in root.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    assert [one.attributes["id"] for one in root.all("section")] == ["facts", *SECTIONS]
    for name in ["verdict", "tiles", "forecast", "map-when", "map-cow", *CHARTS]:
        root.by_id(name)
    drawings = list(_drawings(text))
    assert len(drawings) > len(CHARTS)
    for drawing in drawings:
        ET.fromstring(drawing)


def test_nothing_is_fetched_and_nothing_runs() -> None:
    text = page(made_up.subject())
    root = read(text)
    for element in root.all():
        assert element.tag not in {"script", "link", "img", "iframe", "object", "image", "use"}
        assert not {"src", "href", "xlink:href", "srcset"} & element.attributes.keys()
        assert not [name for name in element.attributes if name.startswith("on")]
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#map-when-hatch", "#map-cow-hatch"}
    without_names = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in without_names


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style><script>x</script>",
    "--><script>x</script><!--",
    "a\x00b\x1b[31m\x7f\udcff",
    "&lt;b&gt; &amp; 'x' \u2028",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_from_outside_becomes_markup(name: str) -> None:
    history = made_up.history()
    history.held(Held(5.0, name, 0.001))
    begun = {"begin_time": name}
    event = {"event": name, "job": name, "message": name}
    warned = {"event": "warning", "job": "j", "message": name}
    text = page(
        made_up.subject(
            job=name, state=name, source=name, destination=name, lost=name, way_on=name,
            begun=begun, ended=made_up.ended(error=name, digest=name, left=[name]), history=history,
            log=[(made_up.BEGIN, event), (made_up.BEGIN, warned)],
        )
    )  # fmt: skip
    text.encode()
    root = read(text)
    assert not list(root.all("script"))
    assert not list(root.all("img"))
    assert len(list(root.all("style"))) == 1
    for drawing in _drawings(text):
        ET.fromstring(drawing)
    shown = name if name.isprintable() or "\u2028" in name else r"a\x00b\x1b[31m\x7f\udcff"
    facts = [one.text for one in root.by_id("facts").all("dd")]
    assert facts.count(shown) >= 3
    assert shown in root.by_id("verdict").text
    assert shown in root.by_id("events").text
    assert shown in root.by_id("holds").text


def test_job_without_history_still_has_a_page_that_says_so() -> None:
    for history in (None, History(made_up.LENGTH, SEGMENT)):
        root = read(page(made_up.subject(history=history)))
        assert "no history of this job" in root.by_id("no-history").text
        assert not [one for one in root.all("svg") if one.attributes.get("id") in CHARTS]
        assert "118.1 GiB" in root.by_id("tiles").text
        assert len(root.by_id("events").rows()) == len(made_up.log())


def test_job_of_which_nothing_is_known_has_a_page() -> None:
    root = read(
        page(
            made_up.subject(
                state="unknown", tone="wait", source="-", destination="-", created=None,
                begun=None, ended=None, history=None, log=[],
            )
        )
    )  # fmt: skip
    assert "Nothing is copied yet" in root.by_id("verdict").text
    assert "Nothing is recorded" in root.by_id("events").text


def test_longest_history_and_log_make_a_page_of_less_than_2_mb() -> None:
    history = History(Sectors(MOST_CELLS * SEGMENT * 1000), SEGMENT)
    for n in range(MOST_SAMPLES):
        at = n * 1234.56789
        history.add(
            Sample(
                at=at, phase="copy", bytes_done=Bytes(n << 40), bytes_retired=Bytes(n << 39),
                cow_used=Bytes(n << 30), cow_total=Bytes(1 << 40), done_at=at * 1.7654321 + 1e6,
                full_at=at * 1.2345678 + 2e6, span=1234.56789, writes=n * 9999991 + 1,
                write_seconds=n * 9876.54321,
            )
        )  # fmt: skip
    for n in range(MOST_HOLDS):
        history.held(Held(n * 1234.5, ("gate", "retire", "brake")[n % 3], 0.00123456 * (n + 1)))
    history.cells = [
        Cell(n * 723.456, Sectors(history.cell_size // 2 + n), Sectors(n * 8))
        for n in range(MOST_CELLS)
    ]
    log = [
        (made_up.BEGIN + n, {"event": "warning", "job": "j", "message": "<&>" * 30000})
        for n in range(1000)
    ]
    text = page(made_up.subject(history=history, log=log))
    assert len(history.samples) == MOST_SAMPLES
    assert len(text.encode()) < 2_000_000
    assert "700 earlier ones are not shown" in read(text).by_id("events").text


def _by_hand() -> History:
    """Ten segments; the figures below are worked out on paper."""
    history = History(Sectors(10 * SEGMENT), SEGMENT)
    four = Bytes(4 * MIB)
    whole = Bytes(40 * MIB)
    for at, phase, done, span, writes, seconds in (
        (-2.0, "before", 0, 2.0, 100, 0.05),
        (0.0, "before", 0, 2.0, 300, 0.15),
        (2.0, "copy", 5 * four, 2.0, 200, 0.2),
        (4.0, "copy", whole, 2.0, 50, 0.2),
        (6.0, "after", whole, 2.0, 0, 0.0),
    ):
        history.add(
            Sample(
                at=at, phase=phase, bytes_done=Bytes(done), span=span, writes=writes,
                write_seconds=seconds, cow_used=Bytes(MIB) if at == 2.0 else None,
                cow_total=Bytes(4 * MIB), done_at={2.0: 5.0, 4.0: 4.0}.get(at),
            )
        )  # fmt: skip
    for n in range(200):
        history.held(Held(1 + n / 100, "gate", (n + 1) / 1000))
    history.held(Held(-0.5, "begin", 0.0125))
    for n in range(9):
        extent = Extent(Sectors(n * SEGMENT), SEGMENT)
        history.copied(float(1 + n % 4), [Copied(extent, Bytes(MIB if n == 3 else 0))])
    return history


def test_figures_in_the_tables_are_those_worked_out_by_hand() -> None:
    history = _by_hand()
    root = read(page(made_up.subject(history=history, ended=None)))
    # 400 writes in 4 s took 0.2 s; 250 in 4 s took 0.4 s, in the worst sample 50 took 0.2 s
    assert root.by_id("writes").rows() == [
        ["before", "400", "100", "0.5 ms", "0.5 ms"],
        ["copy", "250", "62", "1.6 ms", "4 ms"],
        ["after", "0", "0", "-", "-"],
    ]
    assert "3.20 times as long as before" in root.by_id("writes").text
    # of 1, 2 ... 200 ms: the 100th and the 198th
    assert root.by_id("holds").rows() == [
        ["begin", "1", "12.5 ms", "12.5 ms", "12.5 ms"],
        ["gate", "200", "100 ms", "198 ms", "200 ms"],
    ]
    # at half of the 4 s, 5 s was forecast: 25 % too late
    assert ["50% (2.0 s)", "5.0 s", "+25%"] in root.by_id("forecast").rows()
    tiles = {
        next(tile.all("span")).text: next(tile.all("b")).text
        for tile in root.by_id("tiles").all("div", "tile")
    }
    assert tiles == {
        "Copied": "40.0 MiB",
        "Time to copy": "4.0 s",
        "Rate": "10.0 MiB/s",
        "From the COW device": "1.0 MiB",
        "COW device, fullest": "25%",
        "Longest hold": "200 ms",
        "Write latency, during": "1.6 ms",
        "Writes a second, during": "62",
    }


def test_map_has_a_cell_for_each_cell_and_tells_place_time_and_origin() -> None:
    history = _by_hand()
    root = read(page(made_up.subject(history=history)))
    for name in ("map-when", "map-cow"):
        cells = list(root.by_id(name).all("rect", "cell"))
        assert len(cells) == len(history.cells) == 10
        assert cells[0].text == "0 B to 4.0 MiB: copied at 1.0 s, no COW"
        assert cells[3].text == (
            "12.0 MiB to 16.0 MiB: copied at 4.0 s, 25.0% of it from the COW device"
        )
        assert cells[9].text == "36.0 MiB to 40.0 MiB: not copied"
        assert ["none" in cell.classes for cell in cells] == [False] * 9 + [True]
    when = [one.attributes for one in root.by_id("map-when").all("rect", "cell")]
    assert when[0]["fill"] == when[4]["fill"] == "#482173", "the first"
    assert when[3]["fill"] == when[7]["fill"] == "#fde725", "the last"
    assert len({one["fill"] for one in when[:4]}) == 4
    cow = list(root.by_id("map-cow").all("rect", "cell"))
    assert ["cow" in cell.classes for cell in cow] == [n == 3 for n in range(10)]


def test_cell_copied_in_part_is_drawn_in_part() -> None:
    history = History(Sectors(2 * SEGMENT), SEGMENT)
    history.add(Sample(at=1.0, phase="copy", bytes_done=Bytes(MIB)))
    history.copied(1.0, [Copied(Extent(Sectors(0), Sectors(2048)), Bytes(0))])
    first, second = (
        read(page(made_up.subject(history=history))).by_id("map-when").all("rect", "cell")
    )
    assert float(first.attributes["height"]) == float(second.attributes["height"]) / 4
    assert "25% copied" in first.text


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, "Done, read back and verified"),
        ({"ended": made_up.ended(verified=False)}, "Done118.1 GiB copied"),
        (
            {"ended": made_up.ended(error="the COW device is full"), "tone": "bad",
             "state": "failed", "history": made_up.history(until=50)},
            "Failedthe COW device is full49.2 GiB of 118.1 GiB copied in 50 s, at 1007.4 MiB/s",
        ),
        (
            {"ended": None, "tone": "busy", "state": "copying (pid 4)",
             "history": made_up.history(until=50)},
            "Copying (pid 4)49.2 GiB of 118.1 GiB copied",
        ),
        (
            {"ended": None, "tone": "wait", "state": "paused", "way_on": "dmcopy resume j",
             "history": made_up.history(until=-3)},
            "PausedNothing is copied yet.Go on: dmcopy resume j",
        ),
    ],
)  # fmt: skip
def test_verdict_says_how_it_went(other: dict[str, Any], said: str) -> None:
    assert said in read(page(made_up.subject(**other))).by_id("verdict").text


def test_running_copy_is_told_when_it_is_to_be_done() -> None:
    history = made_up.history(until=50)
    root = read(page(made_up.subject(history=history, ended=None, tone="busy")))
    assert "forecast to be done at 1:" in root.by_id("tiles").text


def test_copy_that_filled_the_cow_device_says_when() -> None:
    history = made_up.history(until=70)
    history.samples = [
        Sample(**{**vars(sample), "cow_used": sample.cow_total}) if sample.at >= 66 else sample
        for sample in history.samples
    ]
    root = read(page(made_up.subject(history=history, tone="bad", lost="it is full")))
    assert "it was full: 1:06" in root.by_id("chart-forecast").text
    assert "it was full" not in read(page(made_up.subject())).by_id("chart-forecast").text


def test_copy_that_may_have_filled_the_cow_device_says_so() -> None:
    assert "never forecast to be full" in read(page(made_up.subject())).by_id("forecast").text
    history = made_up.history()
    history.samples = [
        sample if sample.done_at is None
        else Sample(**{**vars(sample), "full_at": 60.0, "done_at": 110.0})
        for sample in history.samples
    ]  # fmt: skip
    told = read(page(made_up.subject(history=history))).by_id("forecast").text
    assert "the COW device was forecast to be full at 1:00, before the end of the copy" in told


@st.composite
def _histories(draw: st.DrawFn) -> History:
    history = History(Sectors(draw(st.integers(1, 5000)) * 1024), SEGMENT)
    at = draw(st.floats(-100, 0))
    seconds = st.floats(0, 1e6)
    for phase in ("before", "copy", "verify", "after"):
        for _ in range(draw(st.integers(0, 3))):
            span = round(draw(st.floats(0, 5000)), 4)  # as it is kept
            at += span
            history.add(
                Sample(
                    at=at, phase=phase, span=span, writes=draw(st.integers(0, 10**9)),
                    bytes_done=Bytes(draw(st.integers(0, 10**13))),
                    bytes_retired=Bytes(draw(st.integers(0, 10**13))),
                    cow_used=draw(st.none() | st.integers(0, 10**13).map(Bytes)),
                    cow_total=draw(st.none() | st.integers(0, 10**13).map(Bytes)),
                    done_at=draw(st.none() | seconds), full_at=draw(st.none() | seconds),
                    write_seconds=draw(seconds),
                )
            )  # fmt: skip
    for reason in draw(st.lists(st.sampled_from(["begin", "gate", "new"]), max_size=4)):
        history.held(Held(draw(st.floats(-10, 1e5)), reason, draw(st.floats(0, 100))))
    some = draw(st.lists(st.tuples(seconds, st.integers(0, 20000)), min_size=1, max_size=4))
    for index in range(0, len(history.cells), 7):
        at, copied = some[index % len(some)]
        history.cells[index] = Cell(at, Sectors(copied), Sectors(8))
    return history


def test_latency_that_is_next_to_nothing_is_no_measure() -> None:
    history = History(Sectors(80), Sectors(8))
    for phase, seconds in (("before", 5e-324), ("copy", 6.0)):
        history.add(Sample(at=0.0, phase=phase, span=1.0, writes=1, write_seconds=seconds))
    assert "inf times" not in page(made_up.subject(history=history, ended=None, tone="busy"))


@settings(max_examples=20, phases=[Phase.generate])  # shrinking takes minutes
@given(history=_histories())
def test_any_history_gives_a_well_formed_page(history: History) -> None:
    text = page(made_up.subject(history=history, ended=None, tone="busy"))
    read(text)
    assert re.findall(r".{0,40}\b(?:nan|inf)\b.{0,40}", text) == []
    for drawing in _drawings(text):
        for one in ET.fromstring(drawing).iter():
            for name in ("x", "x1", "x2", "width"):
                share = one.get(name, "")
                if share.endswith("%"):
                    assert 0 <= float(share[:-1]) <= 100
