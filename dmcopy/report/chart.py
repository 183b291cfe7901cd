"""A chart over time, as SVG that is as wide as there is room for.

Positions along the time axis are shares of the width, written as per cent, so that text and
markers keep their size and shape in any window; only lines are in a drawing of their own, which
is stretched, with strokes that are not.  Heights are pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dmcopy.report.markup import Node, tag
from dmcopy.report.scale import Linear, Scale

_WIDE: Final = 10000  # units of the stretched drawing

# A shape for each reason, so that colour is never the only difference; about 9 pixels wide.
SHAPES: Final = {
    "begin": "M0-5.5 5-.5 0 4.5-5-.5Z",
    "retire": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0Z",
    "gate": "M-4.5 3.5H4.5L0-4.5Z",
    "brake": "M-4-4H4V4H-4Z",
    "grow": "M-4.5-3.5H4.5L0 4.5Z",
    "end": "M-4.5-1.5H-1.5V-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5Z",
}
_OTHER: Final = "retire"
_BOX: Final = "M1 1H15V13H1Z"
_HATCHED: Final = f"{_BOX}M1 6L6 1M1 11L11 1M5 13L15 3M10 13L15 8"


class Point(NamedTuple):
    """A value at a time."""

    at: float
    value: float


class Step(NamedTuple):
    """A value over a time; *text* is told to who points at it."""

    start: float
    end: float
    value: float | None  # None: not known, which leaves a gap
    text: str


class Mark(NamedTuple):
    """A moment, told over the chart."""

    at: float
    text: str
    side: str = "right"  # of its line: where the text is; edge: at the chart's right end


class Chart:
    """One chart; draw into it, then take `node`."""

    def __init__(self, name: str, times: Linear, values: Scale, *, height: int, title: str) -> None:
        """*name* is its id in the page, *title* says in words what it shows."""
        self._name = name
        self._times = times
        self._values = values
        self._height = height
        self._title = title
        self._below: list[Node] = []
        self._lines: list[Node] = []
        self._above: list[Node] = []

    def band(self, start: float, end: float, kind: str) -> None:
        """Shade a time."""
        left, right = self._times.share(start), self._times.share(max(end, start))
        self._below.append(
            tag(
                "rect", class_=f"band {kind}", x=_percent(left), y=0,
                width=_percent(right - left), height=self._height,
            )
        )  # fmt: skip

    def line(self, points: Sequence[Point], kind: str) -> None:
        """Draw from point to point; a single one as a dot."""
        if points:
            path = "M" + "L".join(f"{self._x(at)} {self._y(value):.1f}" for at, value in points)
            self._path(path if len(points) > 1 else path + "h0", f"line {kind}")

    def area(self, points: Sequence[Point], kind: str) -> None:
        """Fill between the points and the time axis."""
        if len(points) > 1:
            path = "L".join(f"{self._x(at)} {self._y(value):.1f}" for at, value in points)
            first, last = self._x(points[0].at), self._x(points[-1].at)
            floor = self._height
            self._path(f"M{first} {floor}L{path}L{last} {floor}Z", f"area {kind}")

    def steps(self, steps: Iterable[Step], kind: str) -> None:
        """Draw each step flat, joined to the one before where no time is missing between."""
        path, before = "", None
        for step in steps:
            left, right = self._x(step.start), self._x(step.end)
            if step.value is not None:
                y = f"{self._y(step.value):.1f}"
                joined = before is not None and abs(left - before) <= _WIDE // 500
                path += f"V{y}H{right}" if joined else f"M{left} {y}H{right}"
                self._hover(step)
            before = right if step.value is not None else None
        if path:
            self._path(path, f"line {kind}")

    def told(self, steps: Iterable[Step]) -> None:
        """Tell the texts of *steps* to who points at their times; draw nothing."""
        for step in steps:
            self._hover(step)

    def level(self, value: float, text: str, kind: str) -> None:
        """Draw a line through the whole width, with a text under its right end."""
        y = self._y(value)
        self._path(f"M0 {y:.1f}H{_WIDE}", f"line {kind}")
        self._above.append(
            tag("text", text, class_=f"label {kind}", x="100%", dx=-4, y=y + 15, text_anchor="end")
        )

    def mark(self, mark: Mark) -> None:
        """Draw a line through the whole height at a moment, with a text over it."""
        x = _percent(self._times.share(mark.at))
        self._below.append(tag("line", class_="mark", x1=x, x2=x, y1=-14, y2=self._height))
        if mark.text:
            side = {"right": (x, 4, "start"), "left": (x, -4, "end"), "edge": ("100%", 8, "end")}
            at, shift, anchor = side[mark.side]
            self._above.append(
                tag("text", mark.text, class_="label", x=at, y=-5, dx=shift, text_anchor=anchor)
            )

    def dot(self, point: Point, reason: str, text: str) -> None:
        """Draw the marker of *reason*; *text* is told to who points at it."""
        inner = tag("svg", x=_percent(self._times.share(point.at)), y=self._y(point.value))
        inner.set("class", "dot")
        inner.append(tag("path", tag("title", text), d=shape(reason), class_=f"r-{kind(reason)}"))
        self._above.append(inner)

    def node(self, *, with_times: bool = True) -> Node:
        """Give the drawing."""
        height = self._height
        drawing = tag(
            "svg", *self._lines, class_="stretched", x=0, y=0, width="100%", height=height,
            viewBox=f"0 0 {_WIDE} {height}", preserveAspectRatio="none",
        )  # fmt: skip
        svg = tag(
            "svg", tag("title", self._title), *self._grid(with_times=with_times), *self._below,
            drawing, *self._above,
            id=self._name, class_="plot", role="img", width="100%", height=height,
            xmlns="http://www.w3.org/2000/svg",
        )  # fmt: skip
        return tag("div", svg, class_="chart" if with_times else "chart bare")

    def _grid(self, *, with_times: bool) -> Iterable[Node]:
        for value, text in self._values.ticks:
            y = self._y(value)
            yield tag("line", class_="grid", x1=0, x2="100%", y1=y, y2=y)
            yield tag("text", text, class_="tick", x=0, dx=-8, y=y + 4, text_anchor="end")
        for value, text in self._times.ticks:
            x = _percent(self._times.share(value))
            yield tag("line", class_="grid", x1=x, x2=x, y1=0, y2=self._height)
            if with_times:
                yield tag(
                    "text", text, class_="tick", x=x, y=self._height + 18, text_anchor="middle"
                )

    def _hover(self, step: Step) -> None:
        left, right = self._times.share(step.start), self._times.share(step.end)
        if right > left:
            self._above.append(
                tag(
                    "rect", tag("title", step.text), class_="hover", x=_percent(left), y=0,
                    width=_percent(right - left), height=self._height,
                )
            )  # fmt: skip

    def _path(self, path: str, class_: str) -> None:
        self._lines.append(tag("path", d=path, class_=class_))

    def _x(self, at: float) -> int:
        return round(self._times.share(at) * _WIDE)

    def _y(self, value: float) -> float:
        return (1 - self._values.share(value)) * self._height


def kind(reason: str) -> str:
    """Give the word by which a reason has its colour and shape."""
    return reason if reason in SHAPES else _OTHER


def shape(reason: str) -> str:
    """Give the path of a reason's marker, around 0, 0."""
    return SHAPES[kind(reason)]


def key(class_: str, *, dot: bool = False, fill: bool = False) -> Node:
    """Give the sample of a line, marker or colour for a legend."""
    if dot:
        inner = tag("path", d=shape(class_), class_=f"r-{kind(class_)}", transform="translate(8 7)")
    elif fill:
        inner = tag("path", d=_HATCHED if class_ == "key-hatch" else _BOX, class_=class_)
    else:
        inner = tag("path", d="M0 7H22", class_=f"line {class_}")
    width = 16 if dot or fill else 22
    return tag("svg", inner, class_="key", width=width, height=14, aria_hidden="true")


def _percent(share: float) -> str:
    return f"{share * 100:.2f}%"
