"""The plot of the impact: latency over time, what went to the COW device, the copy's time."""

from __future__ import annotations

from math import log10
from statistics import median
from typing import Final

from benchmarks.distribution import UNIFORM
from benchmarks.drawing import FAINT, GREY, INK, Drawing
from benchmarks.figures import MIB, Spread
from benchmarks.impact_figures import chunks, copy_seconds, least, loads, of, ratio, rounds, spread
from benchmarks.impact_methods import (
    GATE,
    HOT,
    LABELS,
    LVM_DD,
    LVM_QEMU,
    METHODS,
    NO_RETIRE,
    NONE,
    RETIRE,
)
from benchmarks.impact_samples import WINDOW, Run

_HEIGHT: Final = 668
_COLOURS: Final = {
    NONE: "#8c959f",
    LVM_DD: "#cf222e",
    LVM_QEMU: "#f4a3a8",
    NO_RETIRE: "#bf8700",
    RETIRE: "#1f6feb",
    HOT: "#1a7f37",
    GATE: "#8250df",
}
_OURS: Final = (NO_RETIRE, RETIRE, HOT, GATE)
_CURVES: Final = (NONE, LVM_DD, NO_RETIRE, GATE, HOT, RETIRE)  # the last is above the others

_LEFT: Final = 64
_RIGHT: Final = 764  # of the curves; the legend is beside it
_TOP: Final = 104
_BOTTOM: Final = 336

_LOWER: Final = 442  # top of the lower panels
_FOOT: Final = 602
_COLUMNS: Final = 600  # right edge of the left one
_BARS: Final = 790  # where the bars of the right one begin


def curve(run: Run, method: str, load: str) -> list[tuple[float, float]]:
    """Give (seconds since the begin time, p99 in seconds): medians of the rounds."""
    found: dict[float, list[float]] = {}
    for sample in of(run, method, load).values():
        for window in sample.windows:
            if window.writes:
                found.setdefault(window.at, []).append(window.p99)
    least = rounds(run) / 2  # a window that few rounds have would jump
    return [(at, median(them)) for at, them in sorted(found.items()) if len(them) >= least]


def svg(run: Run) -> str:
    """Give the picture."""
    drawing = Drawing(_HEIGHT)
    setup, host = run.setup, run.machine["host"]
    count = rounds(run)
    drawing.text(16, 28, "What the application feels of a copy", size=17, bold=True)
    drawing.text(
        16, 48,
        f"{setup['iops']} direct writes of 4 KiB a second to {setup['size_bytes'] // MIB} MiB "
        f"({setup['size_bytes'] // setup['chunk_bytes']} chunks of 64 KiB) while it is copied to "
        f"a slow destination; {'one round' if count == 1 else f'medians of {count} rounds'}",
        fill=GREY,
    )  # fmt: skip
    _latency(drawing, run)
    _cow(drawing, run)
    _times(drawing, run)
    drawing.text(
        16, _HEIGHT - 16,
        f"{host['cpu']}, guest {setup['engine']} Linux {run.machine['guest']['kernel']}, one CPU; "
        "docs/benchmarks.md says how, and what was missed",
        fill=GREY,
    )  # fmt: skip
    return drawing.end()


def _latency(drawing: Drawing, run: Run) -> None:
    drawing.text(16, _TOP - 22, "p99 write latency over time", bold=True, size=13)
    drawing.text(
        16, _TOP - 7, "ms, in windows of 0.5 s; writes all over the device (uniform)",
        fill=GREY, size=11,
    )  # fmt: skip
    curves = {name: curve(run, name, UNIFORM) for name in _CURVES}
    points = [point for one in curves.values() for point in one]
    copies = {name: spread(run, name, UNIFORM, copy_seconds) for name in _CURVES}
    longest = max((one.middle for one in copies.values() if one), default=0.0)
    if not points:
        return
    pause: float = run.setup["pause_seconds"]
    start = max(min(at for at, _ in points), -pause - WINDOW)
    end = min(max(at for at, _ in points) + WINDOW, longest + pause)
    visible = [value for at, value in points if start <= at < end]
    low, high = log10(min(visible) * 0.8), log10(max(visible) * 1.25)

    def x(at: float) -> float:
        return _LEFT + (at - start) / (end - start) * (_RIGHT - _LEFT)

    def y(seconds: float) -> float:
        return _BOTTOM - (log10(seconds) - low) / (high - low) * (_BOTTOM - _TOP)

    reference = copies[LVM_DD] or copies[RETIRE]
    if reference:
        drawing.area(x(0), _TOP, x(reference.middle) - x(0), _BOTTOM - _TOP, fill="#f6f8fa")
        drawing.text(x(0) + 5, _TOP + 13, "copy", size=11, fill=GREY)
    for power in range(-6, 2):
        for step in (1, 2, 5):
            value = step * 10.0**power
            if low <= log10(value) <= high:
                drawing.line(_LEFT, y(value), _RIGHT, y(value), ink=FAINT)
                drawing.text(
                    _LEFT - 6, y(value) + 4, f"{value * 1e3:g}", anchor="end", size=11, fill=GREY
                )
    drawing.line(x(0), _TOP, x(0), _BOTTOM, ink=GREY, dash="3 3")
    for second in range(int(start), int(end) + 1):
        if start <= second <= end:
            drawing.text(x(second), _BOTTOM + 16, f"{second}", anchor="middle", size=11, fill=GREY)
    drawing.text(
        (_LEFT + _RIGHT) / 2, _BOTTOM + 32, "seconds since the begin time",
        anchor="middle", size=11, fill=GREY,
    )  # fmt: skip
    for name, one in curves.items():
        inside = [(x(at + WINDOW / 2), y(value)) for at, value in one if start <= at < end - WINDOW]
        drawing.curve(
            inside, ink=_COLOURS[name], width=2.6 if name == RETIRE else 1.7,
            dash="4 3" if name == NONE else "",
        )  # fmt: skip
    _legend(drawing, [one.name for one in METHODS if one.name in _CURVES], _TOP + 8)


def _legend(drawing: Drawing, names: list[str], top: float) -> None:
    for row, name in enumerate(names):
        y = top + row * 22
        drawing.curve(
            [(_RIGHT + 18, y), (_RIGHT + 44, y)], ink=_COLOURS[name],
            width=3.0, dash="4 3" if name == NONE else "",
        )  # fmt: skip
        drawing.text(_RIGHT + 52, y + 4, LABELS[name], bold=name == RETIRE)


def _cow(drawing: Drawing, run: Run) -> None:
    drawing.text(16, _LOWER - 34, "Chunks that went to the COW device", bold=True, size=13)
    drawing.text(
        16, _LOWER - 19,
        "times those of an LVM snapshot that dd copies, less is better; "
        "dotted: hottest first at best",
        fill=GREY, size=11,
    )  # fmt: skip
    names = (LVM_QEMU, *_OURS)
    found = {
        load: {name: ratio(run, name, LVM_DD, load, chunks) for name in names}
        for load in loads(run)
    }
    known = [one.middle for each in found.values() for one in each.values() if one]
    if not known:
        return
    full = max(*known, 1.0) * 1.08
    group = (_COLUMNS - _LEFT) / len(found)
    width = min(26.0, (group - 26) / len(names))

    def y(value: float) -> float:
        return _FOOT - value / full * (_FOOT - _LOWER)

    for load, each in found.items():
        left = _LEFT + group * list(found).index(load) + (group - width * len(names)) / 2
        for column, name in enumerate(names):
            one, at = each[name], left + column * width
            if one is None:
                continue
            drawing.column(at + 1.5, y(one.middle), width - 3, _FOOT, fill=_COLOURS[name])
            possible = least(run, load, hot_first=True) if name == HOT else None
            if possible and possible[1] < one.middle:
                mark = y(possible[1])
                drawing.curve([(at, mark), (at + width, mark)], ink=INK, dash="2 2")
            _whisker(drawing, at + width / 2, y(min(one.high, full)), y(one.low))
            drawing.text(
                at + width / 2, y(min(one.high, full)) - 4, f"{one.middle:.2f}", anchor="middle",
                size=10, bold=name == RETIRE,
            )  # fmt: skip
        drawing.text(
            left + width * len(names) / 2, _FOOT + 16, load, anchor="middle", size=12, bold=True
        )
    drawing.line(_LEFT, _FOOT, _COLUMNS, _FOOT, ink=GREY)
    drawing.line(_LEFT, y(1.0), _COLUMNS, y(1.0), ink=_COLOURS[LVM_DD], dash="4 3")
    drawing.text(
        _LEFT - 6, y(1.0) + 4, "1.0", anchor="end", size=11, fill=_COLOURS[LVM_DD], bold=True
    )
    drawing.text(_LEFT - 6, _FOOT + 4, "0", anchor="end", size=11, fill=GREY)


def _whisker(drawing: Drawing, x: float, top: float, bottom: float) -> None:
    if bottom - top < 1:
        return
    drawing.line(x, top, x, bottom, ink=INK)
    for y in (top, bottom):
        drawing.line(x - 3, y, x + 3, y, ink=INK)


def _times(drawing: Drawing, run: Run) -> None:
    drawing.text(_COLUMNS + 34, _LOWER - 34, "Time of the copy", bold=True, size=13)
    drawing.text(
        _COLUMNS + 34, _LOWER - 19, "seconds, uniform; qemu-img has 8 writes under way",
        fill=GREY, size=11,
    )  # fmt: skip
    names = (LVM_DD, LVM_QEMU, *_OURS)
    times = {name: spread(run, name, UNIFORM, copy_seconds) for name in names}
    known = [one.high for one in times.values() if one]
    if not known:
        return
    full, height = max(known), (_FOOT - _LOWER) / len(names)
    for row, name in enumerate(names):
        _time(drawing, name, times[name], _LOWER + row * height + 4, full)


def _time(drawing: Drawing, name: str, found: Spread | None, y: float, full: float) -> None:
    drawing.text(_BARS - 8, y + 12, LABELS[name], anchor="end", size=11, bold=name == RETIRE)
    if found is None:
        drawing.text(_BARS + 4, y + 12, "-", fill=GREY)
        return
    width = 964 - 40 - _BARS
    drawing.bar(_BARS, y, width * found.middle / full, fill=_COLOURS[name])
    low, high = (_BARS + width * value / full for value in (found.low, found.high))
    if high - low >= 1:
        drawing.line(low, y + 7, high, y + 7, ink=INK)
        for at in (low, high):
            drawing.line(at, y + 4, at, y + 10, ink=INK)
    drawing.text(high + 6, y + 11, f"{found.middle:.2f} s", size=11, bold=name == RETIRE)
