"""The image as a grid of cells: when each was copied, and how much came from the COW device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from dmcopy.core.history import Cell, History
from dmcopy.report.figures import extent_of, from_cow
from dmcopy.report.markup import Node, tag
from dmcopy.report.scale import moment
from dmcopy.units import format_size, to_bytes

_CELL: Final = 10  # units, with the gap
_GAP: Final = 1
_LARGEST: Final = 26  # pixels: of a cell, where there are few
_ASPECT: Final = 4  # columns to rows, about
_FAINTEST: Final = 0.16  # opacity of a cell with next to nothing from the COW device

# viridis (matplotlib, CC0): equal steps look equal, also to who does not see all colours
VIRIDIS: Final = (
    (72, 33, 115), (67, 62, 133), (56, 88, 140), (45, 112, 142), (37, 133, 142), (30, 155, 138),
    (42, 176, 127), (82, 197, 105), (134, 213, 73), (194, 223, 35), (253, 231, 37),
)  # fmt: skip


class Span(NamedTuple):
    """The first and the last time at which a cell was copied."""

    first: float
    last: float


def copied_span(history: History) -> Span | None:
    """Give the times of the colour scale, None where nothing was copied."""
    at = [cell.at for cell in history.cells if cell.copied]
    return Span(min(at), max(at)) if at else None


def colour(share: float) -> str:
    """Give the colour of *share*, 0 to 1, of the scale."""
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    mixed = (
        round(a + (b - a) * (place - low))
        for a, b in zip(VIRIDIS[low], VIRIDIS[low + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def most_from_cow(history: History) -> float:
    """Give the end of the scale of shares from the COW device: the largest, rounded up."""
    largest = max((from_cow(cell) for cell in history.cells), default=0.0)
    rounded = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
    return next((limit for limit in rounded if largest <= limit), 1.0)


def opacity(share: float, most: float) -> float:
    """Give how strong a cell is drawn that has *share* from the COW device."""
    return round(_FAINTEST + (1 - _FAINTEST) * min(share / most, 1.0), 3)


def when_map(history: History) -> Node:
    """Draw when each cell was copied."""
    span = copied_span(history) or Span(0.0, 0.0)
    wide = (span.last - span.first) or 1.0

    def look(cell: Cell) -> dict[str, str | float]:
        return {"class": "cell", "fill": colour((cell.at - span.first) / wide)}

    return _map("map-when", "Map of the image: when each part was copied", history, look)


def cow_map(history: History) -> Node:
    """Draw how much of each cell came from the COW device."""
    most = most_from_cow(history)

    def look(cell: Cell) -> dict[str, str | float]:
        if not cell.from_cow:
            return {"class": "cell source"}
        return {"class": "cell cow", "fill-opacity": opacity(from_cow(cell), most)}

    return _map("map-cow", "Map of the image: how much came from the COW device", history, look)


def _map(
    name: str, title: str, history: History, look: Callable[[Cell], dict[str, str | float]]
) -> Node:
    count = len(history.cells)
    columns = min(max(math.ceil(math.sqrt(_ASPECT * count)), 8), count) if count > 8 else count
    rows = -(-count // columns)
    hatch = f"{name}-hatch"
    svg = tag(
        "svg",
        tag("title", title),
        tag(
            "defs",
            tag(
                "pattern", tag("path", d="M-1 1L1-1M0 4L4 0M3 5L5 3", class_="hatch"),
                id=hatch, width=4, height=4, patternUnits="userSpaceOnUse",
            ),
        ),
        id=name, class_="map", role="img", viewBox=f"0 0 {columns * _CELL} {rows * _CELL}",
        style=f"max-width:{columns * _LARGEST}px", xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip
    side = _CELL - _GAP
    for index, cell in enumerate(history.cells):
        row, column = divmod(index, columns)
        whole = extent_of(history, index)
        x, y = column * _CELL, row * _CELL
        if cell.copied < whole.length:  # the part that is missing is seen, from the top
            svg.append(
                tag("rect", x=x, y=y, width=side, height=side, fill=f"url(#{hatch})", class_="gap")
            )
        share = min(cell.copied / whole.length, 1.0)
        high = side * share
        attributes = look(cell) if cell.copied else {"class": "cell none"}
        rect = tag("rect", tag("title", _told(history, index)), x=x, width=side)
        rect.set("y", f"{y + side - high if cell.copied else y:.6g}")
        rect.set("height", f"{high if cell.copied else side:.6g}")
        for word, value in attributes.items():
            rect.set(word, str(value))
        svg.append(rect)
    return svg


def _told(history: History, index: int) -> str:
    cell, extent = history.cells[index], extent_of(history, index)
    place = f"{format_size(extent.offset)} to {format_size(to_bytes(extent.end))}"
    if not cell.copied:
        return f"{place}: not copied"
    part = "" if cell.copied >= extent.length else f"{cell.copied / extent.length:.0%} "
    source = f"{from_cow(cell):.1%} of it from the COW device" if cell.from_cow else "no COW"
    return f"{place}: {part}copied at {moment(cell.at)}, {source}"
