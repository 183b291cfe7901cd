"""The plot, as SVG written by hand: bars with whiskers, no library needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks.drawing import FAINT, GREY, INK, Drawing
from benchmarks.figures import MIB, Spread, command_time, copy_time, latency, ratio, rounds, spread
from benchmarks.methods import DMCOPY, DMCOPY_SHA256, METHODS, RAW
from benchmarks.samples import IDLE, LOAD, Run

_LABELS: Final = 150  # for the names at the left
_PANEL: Final = 250
_GAP: Final = 22
_TOP: Final = 96
_ROW: Final = 34
_OURS: Final = "#1f6feb"
_THEIRS: Final = "#8b949e"


def svg(run: Run) -> str:
    """Give the picture: throughput when idle, under load, and what the application felt."""
    height = _TOP + _ROW * len(METHODS) + 62
    drawing = Drawing(height)
    size, host = run.setup["size_bytes"], run.machine["host"]
    drawing.text(16, 28, "Copying a live block device", size=17, bold=True)
    drawing.text(
        16, 48,
        f"{size / (MIB << 10):g} GiB between equal RAM disks, one CPU, "
        f"{rounds(run)} rounds; bars: medians, whiskers: smallest and largest",
        fill=GREY,
    )  # fmt: skip
    for row, method in enumerate(METHODS):
        ours = method.name in (DMCOPY, DMCOPY_SHA256)
        drawing.text(
            _LABELS - 8, _TOP + row * _ROW + 21, method.label, anchor="end", bold=ours, size=12
        )
    seconds = copy_time(run)
    load = f"with {run.setup['iops']} writes/s"
    _panel(
        drawing, 0, "Throughput, idle", "times raw dd",
        of=lambda name: ratio(run, name, RAW, IDLE, seconds), form="{:.2f}", mark=1.0,
    )  # fmt: skip
    _panel(
        drawing, 1, f"Throughput, {load}", "times raw dd",
        of=lambda name: ratio(run, name, RAW, LOAD, seconds), form="{:.2f}", mark=1.0,
    )  # fmt: skip
    _panel(
        drawing, 2, "p99 latency of those writes", "ms, less is better",
        of=lambda name: _times(latency(run, name, lambda one: one.p99), 1e3), form="{:.1f} ms",
    )  # fmt: skip
    whole = spread(run, DMCOPY, IDLE, command_time)
    moved = spread(run, DMCOPY, IDLE, seconds)
    if whole is not None and moved is not None:
        drawing.text(
            16, height - 34,
            f"Throughput is of the copy phase; dmcopy's whole command took {whole.middle:.1f} s, "
            f"{moved.middle:.2f} s of it copying: start-up is slow in this guest.",
            fill=GREY,
        )  # fmt: skip
    drawing.text(
        16, height - 16,
        f"{host['cpu']}, guest {run.setup['engine']} Linux {run.machine['guest']['kernel']}; "
        "docs/benchmarks.md says how, and what was missed",
        fill=GREY,
    )  # fmt: skip
    return drawing.end()


def _times(spread_: Spread | None, factor: float) -> Spread | None:
    if spread_ is None:
        return None
    middle, low, high, rounds = spread_
    return Spread(middle * factor, low * factor, high * factor, rounds)


def _panel(
    drawing: Drawing, column: int, title: str, unit: str, *,
    of: Callable[[str], Spread | None], form: str, mark: float | None = None,
) -> None:  # fmt: skip
    left = _LABELS + column * (_PANEL + _GAP)
    bottom = _TOP + _ROW * len(METHODS)
    drawing.text(left, _TOP - 22, title, bold=True, size=13)
    drawing.text(left, _TOP - 7, unit, fill=GREY, size=11)
    found = {one.name: of(one.name) for one in METHODS}
    known = [one for one in found.values() if one is not None]
    if not known:
        return
    # a single very slow run may leave the panel; its whisker ends in an arrow
    full = max(max(one.middle for one in known) * 1.6, mark or 0.0)
    width = _PANEL - 58
    drawing.line(left, _TOP, left, bottom, ink=FAINT)
    if mark is not None:
        at = left + width * mark / full
        drawing.line(at, _TOP, at, bottom, ink=GREY, dash="3 3")
    for row, method in enumerate(METHODS):
        one, y = found[method.name], _TOP + row * _ROW + 10
        if one is None:
            drawing.text(left + 4, y + 11, "-", fill=GREY)
            continue
        ours = method.name in (DMCOPY, DMCOPY_SHA256)
        drawing.bar(left, y, width * one.middle / full, fill=_OURS if ours else _THEIRS)
        low, high = (left + width * min(value / full, 1.0) for value in (one.low, one.high))
        drawing.line(low, y + 7, high, y + 7, ink=INK)
        drawing.line(low, y + 4, low, y + 10, ink=INK)
        if one.high <= full:
            drawing.line(high, y + 4, high, y + 10, ink=INK)
        else:
            drawing.line(high - 4, y + 3, high, y + 7, ink=INK)
            drawing.line(high - 4, y + 11, high, y + 7, ink=INK)
        drawing.text(left + width + 8, y + 11, form.format(one.middle), size=11, bold=ours)
