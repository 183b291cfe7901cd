"""The report as a browser shows it: what is to be seen is there, and nothing lies over another.

One start of Chromium shows five pages side by side, in frames: wide and light, wide and dark (of
a copy that still runs), narrow, narrow and of a short copy, and one of a job that has no history,
which must lack all that the others are found to have.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from html import unescape
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from PIL import Image

from dmcopy.report.page import page
from tests.unit.report import made_up

pytestmark = pytest.mark.forks

HIGH: Final = 4400
FRAMES: Final = {"light": 1280, "dark": 1280, "narrow": 420, "short": 420, "empty": 1280}
Rgb = tuple[int, int, int]

# of the page's style, light and dark, written again: a colour that is changed is looked at again
COPIED, RETIRED, COW = (0, 114, 178), (0, 158, 115), (213, 94, 0)
LATENCY = (138, 63, 143)
DARK_COPIED, DARK_COW, DARK_PAGE = (86, 180, 233), (255, 138, 61), (15, 18, 22)
DARK_LATENCY = (217, 147, 220)

# Measures each frame: how wide its content is, where what has an id is, each text of a chart, and
# each cell of the map.
_MEASURE: Final = """
const box = r => [r.left, r.top, r.right, r.bottom];
function measure(frame) {
  const d = frame.contentDocument, all = s => [...d.querySelectorAll(s)];
  const cells = id => all(`#${id} .cell`).map(c => box(c.getBoundingClientRect()));
  return {
    scroll: d.documentElement.scrollWidth,
    high: d.documentElement.scrollHeight,
    ids: Object.fromEntries(all('[id]').map(e => [e.id, box(e.getBoundingClientRect())])),
    texts: Object.fromEntries(all('svg.plot').map(p => [p.id, [...p.querySelectorAll('text')].map(
      t => [t.textContent, ...box(t.getBoundingClientRect())])])),
    blocks: all('main *:not(svg *)').map(e => [e.tagName, ...box(e.getBoundingClientRect())]),
    cells: {when: cells('map-when'), cow: cells('map-cow')},
  };
}
onload = () => {
  const frames = [...document.querySelectorAll('iframe')];
  const found = Object.fromEntries(frames.map(f => [f.id, measure(f)]));
  document.getElementById('found').textContent = JSON.stringify(found);
};
"""


class Box(NamedTuple):
    """A rectangle, in pixels of its frame."""

    left: float
    top: float
    right: float
    bottom: float


class Shown:
    """One frame: what was measured in it, and its pixels."""

    def __init__(self, found: Mapping[str, Any], image: Image.Image) -> None:  # Any: JSON
        self.found = found
        self.image = image

    def box(self, name: str) -> Box:
        """Give where the element with that id is."""
        return Box(*self.found["ids"][name])

    def pixel(self, x: float, y: float) -> Rgb:
        """Give the colour at a place."""
        colour = self.image.getpixel((int(x), int(y)))
        assert isinstance(colour, tuple)
        return colour[0], colour[1], colour[2]

    def count(self, colour: Rgb, within: Box) -> int:
        """Count the pixels of just that colour."""
        counts = self.image.crop(within).getcolors(1 << 16)
        assert counts is not None
        return sum(number for number, found in counts if found == colour)

    def count_everywhere(self, colour: Rgb) -> int:
        """Count the pixels of that colour in the whole frame."""
        return self.count(colour, Box(0, 0, *self.image.size))


def _harness() -> str:
    frames = "".join(
        f'<iframe id="{name}" src="{name}.html" width="{width}" height="{HIGH}" '
        f'style="border:0;flex:none;color-scheme:{"dark" if name == "dark" else "light"}"></iframe>'
        for name, width in FRAMES.items()
    )
    return (
        f'<!doctype html><meta charset="utf-8"><body style="margin:0;display:flex">{frames}'
        f'<pre id="found" hidden></pre><script>{_MEASURE}</script>'
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    where = tmp_path_factory.mktemp("browser")
    whole = page(made_up.subject())
    running = made_up.history(until=50)
    pages = {
        "light": whole,
        "narrow": whole,
        "dark": page(made_up.subject(history=running, ended=None, tone="busy", state="copying")),
        "short": page(made_up.subject(history=made_up.short())),
        "empty": page(made_up.subject(history=None)),
    }
    for name, text in pages.items():
        (where / f"{name}.html").write_text(text)
    (where / "harness.html").write_text(_harness())
    return _look(where)


def _look(where: Path) -> dict[str, Shown]:
    program = shutil.which("chromium")
    assert program is not None, "Debian's chromium is not installed (lab/install.py does it)"
    done = subprocess.run(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--allow-file-access-from-files",
            f"--user-data-dir={where / 'profile'}", f"--screenshot={where / 'shot.png'}",
            "--dump-dom", f"--window-size={sum(FRAMES.values())},{HIGH}",
            "--virtual-time-budget=10000", (where / "harness.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    told = re.search(r'<pre id="found" hidden="">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None, done.stderr
    found = json.loads(unescape(told[1]))
    with Image.open(where / "shot.png") as picture:
        whole = picture.convert("RGB")
    assert whole.size == (sum(FRAMES.values()), HIGH)
    shown, left = {}, 0
    for name, width in FRAMES.items():
        shown[name] = Shown(found[name], whole.crop((left, 0, left + width, HIGH)))
        left += width
    return shown


@pytest.mark.parametrize("name", FRAMES)
def test_page_is_as_wide_as_its_window_and_nothing_is_outside(
    shown: dict[str, Shown], name: str
) -> None:
    found, width = shown[name].found, FRAMES[name]
    assert found["scroll"] == width
    assert found["high"] <= HIGH, "the whole of it is looked at"
    assert len(found["blocks"]) > 50
    outside = [block for block in found["blocks"] if block[1] < 0 or block[3] > width + 0.5]
    assert outside == []


@pytest.mark.parametrize("name", ["light", "dark", "narrow", "short"])
def test_texts_of_a_chart_do_not_lie_over_each_other(shown: dict[str, Shown], name: str) -> None:
    charts = shown[name].found["texts"]
    assert len(charts) == 5
    for chart, texts in charts.items():
        assert len(texts) >= 8
        for index, (text, *where) in enumerate(texts):
            one = Box(*where)
            assert one.right > one.left
            assert one.left >= 0
            assert one.right <= FRAMES[name], f"{chart}: {text} leaves the page"
            for other, *there in texts[:index]:
                assert not _meet(one, Box(*there)), f"{chart}: {text} and {other}"


def _meet(one: Box, other: Box) -> bool:
    wide = min(one.right, other.right) - max(one.left, other.left)
    high = min(one.bottom, other.bottom) - max(one.top, other.top)
    return wide > 0 and high > 2  # the box of a line is higher than its letters


@pytest.mark.parametrize("name", ["light", "narrow"])
def test_each_series_is_seen_in_its_chart(shown: dict[str, Shown], name: str) -> None:
    frame = shown[name]
    for chart, colours in {
        "chart-progress": (COPIED, RETIRED, COW),
        "chart-forecast": (COPIED, COW),
        "chart-holds": (RETIRED, COW, COPIED),
        "chart-latency": (LATENCY,),
        "chart-rate": (COPIED,),
    }.items():
        for colour in colours:
            assert frame.count(colour, frame.box(chart)) >= 10, f"{chart}: {colour}"


def test_progress_is_drawn_where_it_was(shown: dict[str, Shown]) -> None:
    frame = shown["light"]
    chart = frame.box("chart-progress")
    # the axis is as wide as the history and one hundredth of it at each end
    span = made_up.BEFORE + made_up.SECONDS + made_up.VERIFY + made_up.AFTER
    for second, share in ((30, 0.25), (60, 0.5), (90, 0.75), (140, 1.0)):
        place = (second + made_up.BEFORE + span * 0.01) / (span * 1.02)
        x = chart.left + (chart.right - chart.left) * place
        y = chart.bottom - (chart.bottom - chart.top) * share
        near = {frame.pixel(x + dx, y + dy) for dx in (-1, 0, 1) for dy in range(-3, 4)}
        assert COPIED in near, f"at {second} s"
        far = {frame.pixel(x, y + dy) for dy in (-12, -8, 8, 12)}
        assert COPIED not in far


@pytest.mark.parametrize("name", ["light", "narrow"])
def test_cells_of_the_map_have_the_colour_of_their_time(shown: dict[str, Shown], name: str) -> None:
    frame, history = shown[name], made_up.history()
    places = [Box(*where) for where in frame.found["cells"]["when"]]
    assert len(places) == len(history.cells)
    seen = [frame.pixel(*_middle(place)) for place in places]
    first = min(range(len(seen)), key=lambda n: history.cells[n].at)
    last = max(range(len(seen)), key=lambda n: history.cells[n].at)
    assert seen[first] == (72, 33, 115)
    assert seen[last] == (253, 231, 37)
    # later is never darker, and cells of one time have one colour
    by_time: dict[float, set[Rgb]] = {}
    for cell, colour in zip(history.cells, seen, strict=True):
        by_time.setdefault(cell.at, set()).add(colour)
    assert all(len(colours) == 1 for colours in by_time.values())
    light = [_lightness(next(iter(by_time[at]))) for at in sorted(by_time)]
    assert light == sorted(light)
    assert len(light) > 100


def test_more_from_the_cow_device_is_a_stronger_cell(shown: dict[str, Shown]) -> None:
    frame, history = shown["light"], made_up.history()
    places = [Box(*where) for where in frame.found["cells"]["cow"]]
    blue = [
        (cell.from_cow / cell.copied, frame.pixel(*_middle(place))[2])
        for cell, place in zip(history.cells, places, strict=True)
    ]
    assert max(blue)[1] < min(blue)[1] - 60
    faint = [level for share, level in blue if share < 0.02]
    strong = [level for share, level in blue if share > 0.08]
    assert max(strong) < min(faint)


def test_dark_page_is_dark_and_shows_what_is_not_copied(shown: dict[str, Shown]) -> None:
    frame, history = shown["dark"], made_up.history(until=50)
    assert frame.pixel(2, 2) == DARK_PAGE
    progress = frame.box("chart-progress")
    assert frame.count(DARK_COPIED, progress) > 100
    assert frame.count(DARK_COW, progress) > 100
    assert frame.count(DARK_LATENCY, frame.box("chart-latency")) > 100
    assert frame.count(COPIED, progress) == 0
    places = [Box(*where) for where in frame.found["cells"]["when"]]
    whole = [n for n, cell in enumerate(history.cells) if cell.copied in (0, history.cell_size)]
    assert len(whole) > 900
    for cell, place in ((history.cells[n], places[n]) for n in whole):
        brightest = max(_saturation(pixel) for pixel in _inner(frame, place))
        assert (brightest > 60) == (cell.copied > 0)


def test_page_without_history_has_nothing_of_this(shown: dict[str, Shown]) -> None:
    frame = shown["empty"]
    assert frame.found["texts"] == {}
    assert frame.found["cells"] == {"when": [], "cow": []}
    for colour in (COPIED, RETIRED, COW, LATENCY, (72, 33, 115), (253, 231, 37)):
        assert frame.count_everywhere(colour) == 0
        assert shown["light"].count_everywhere(colour) > 0
    assert frame.box("no-history").bottom > frame.box("no-history").top


def _middle(place: Box) -> tuple[float, float]:
    return (place.left + place.right) / 2, (place.top + place.bottom) / 2


def _inner(frame: Shown, place: Box) -> Iterable[Rgb]:
    x, y = _middle(place)
    return [frame.pixel(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]


def _lightness(colour: Rgb) -> float:
    """Give the relative luminance (WCAG 2, without the curve: only the order matters)."""
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def _saturation(colour: Rgb) -> int:
    return max(colour) - min(colour)
