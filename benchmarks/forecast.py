"""``python -m benchmarks forecast``: how wrong the forecast is on recorded copies.

Replays `benchmarks.series`, so that it needs no guest and always gives the same; ``--record``
makes the series anew.  The first and the last value of the same time, as a straight line, are
what it is compared with.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.series import FOLDER, Fill, Series, load_all
from dmcopy.core.forecast import Band, First
from lab.guest import CHECKOUT
from lab.guest import run as run_guest

REPORT: Final = CHECKOUT / "docs" / "forecast-benchmark.md"
_SHARES: Final = (0.25, 0.5, 0.75)
_MIB: Final = 1 << 20


class Asked(NamedTuple):
    """One question to the forecast, its answer and the truth."""

    series: str
    what: str
    share: float  # of the time until it happened
    truth: float
    band: Band | None
    line: float | None  # what a straight line says
    first: First

    @property
    def error(self) -> float | None:
        """The relative error of the likely value."""
        return None if self.band is None else self.band.likely / self.truth - 1

    @property
    def within(self) -> bool:
        """Whether the band holds the truth."""
        return self.band is not None and self.band.low <= self.truth <= self.band.high


def ask(series: Series) -> Iterator[Asked]:
    """Ask at each share of the time, for full, done and needed."""
    for fill in series.fills():
        for share in _SHARES:
            yield _ask_full(series, fill, share)
    for share in _SHARES if series.whole else ():
        forecast, seen = series.until(share * series.done_at)
        outlook = forecast.outlook(total=seen.total, size=series.size)
        first = series.points[0]
        ahead = (series.size - seen.done) * (seen.at - first.at) / (seen.done - first.done)
        truth, line = series.done_at - seen.at, ahead
        yield Asked(series.name, "done, s", share, truth, outlook.done, line, outlook.first)
        line = seen.used + (seen.used - first.used) / (seen.at - first.at) * ahead
        needed = outlook.needed and Band(*(value / _MIB for value in outlook.needed))
        used = series.points[-1].used / _MIB
        yield Asked(series.name, "needed, MiB", share, used, needed, line / _MIB, outlook.first)


def _ask_full(series: Series, fill: Fill, share: float) -> Asked:
    forecast, seen = series.until(share * fill.at)
    outlook = forecast.outlook(total=fill.total, size=series.size)
    what = f"{fill.total / _MIB:.0f} MiB full{'' if fill.real else '*'}, s"
    first = series.points[0]
    grown = seen.used - first.used
    line = (fill.total - seen.used) * (seen.at - first.at) / grown if grown else None
    return Asked(series.name, what, share, fill.at - seen.at, outlook.full, line, outlook.first)


class Warned(NamedTuple):
    """How long before a COW device was full nobody was told any more that it lasts."""

    series: str
    what: str
    full: float  # seconds after begin
    before: float  # seconds


def warnings(series: Series) -> Iterator[Warned]:
    """Look at every point until the COW device is full."""
    for fill in series.fills():
        since = 0.0
        for point in series.points:
            if point.at >= fill.at:
                break
            forecast, _ = series.until(point.at)
            first = forecast.outlook(total=fill.total, size=series.size).first
            if first not in (First.FULL, First.UNSURE):
                since = point.at
        what = f"{fill.total / _MIB:.0f} MiB{'' if fill.real else '*'}"
        yield Warned(series.name, what, fill.at, fill.at - since)


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [head, f"|{'---|' * len(rows[0])}", *rest]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def _answers(asked: Sequence[Asked]) -> list[str]:
    rows = [("series", "what", "asked at", "truth", "likely", "low..high", "error", "line", "in")]
    for one in asked:
        band, error = one.band, one.error
        rows.append(
            (
                one.series,
                one.what,
                f"{one.share:.0%}",
                _number(one.truth),
                _number(band.likely if band else None),
                f"{_number(band.low)}..{_number(band.high)}" if band else "-",
                "-" if error is None else f"{error:+.0%}",
                _number(one.line),
                "yes" if one.within else "no",
            )
        )
    return _grid(rows)


def _errors(asked: Sequence[Asked]) -> list[str]:
    rows = [("what", "asked at", "questions", "median error", "of a straight line", "in the band")]
    for kind in ("full", "done", "needed"):
        for share in _SHARES:
            some = [one for one in asked if kind in one.what and one.share == share]
            lines = [abs(one.line / one.truth - 1) for one in some if one.line is not None]
            rows.append(
                (
                    kind,
                    f"{share:.0%}",
                    str(len(some)),
                    f"{median(abs(one.error) for one in some if one.error is not None):.0%}",
                    f"{median(lines):.0%}",
                    f"{sum(one.within for one in some)}",
                )
            )
    return _grid(rows)


def report(every: Sequence[Series]) -> str:
    """Give everything as Markdown."""
    asked = [one for series in every for one in ask(series)]
    warned = [one for series in every for one in warnings(series)]
    told = [("series", "COW device", "full after, s", "warned before, s")]
    told += [(one.series, one.what, _number(one.full), _number(one.before)) for one in warned]
    lines = [
        "# How wrong the forecast is",
        "",
        "Made by `python -m benchmarks forecast` from the copies of 512 MiB that are recorded in",
        "`tests/data/forecast`; `--record` records them again.  A size with a `*` was not that of",
        "the COW device: a smaller one would have been used in the same way until it was full.  A",
        "straight line goes from the first value to the last one that was seen.  Nobody can know",
        "of *step* before its load begins at 27 s, nor of *files* before the first write-back at",
        "22 s: those answers are wrong, and count.",
        "",
        *_grid([("series", "load"), *((one.name, one.about) for one in every)]),
        "",
        "## Errors",
        "",
        *_errors(asked),
        "",
        "## Warning",
        "",
        "From when on the answer to *which comes first* was never *done* or *unknown*.",
        "",
        *_grid(told),
        "",
        "## Every answer",
        "",
        *_answers(asked),
        "",
    ]
    return "\n".join(lines)


def record(names: Sequence[str]) -> int:
    """Record the named series, or all, in a guest."""
    work = CHECKOUT / ".lab" / f"forecast-{os.getpid()}"
    result = run_guest(
        [sys.executable, "-m", "benchmarks.recorder", str(work), *names],
        memory="2G",
        timeout=900.0,
        artefacts=work,
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT), "LD_PRELOAD": ""},  # without what lab tests preload
        udev=False,
    )
    if result.status:
        print(f"benchmarks: what the guest left is in {work}", file=sys.stderr)
        return result.status
    for made in work.glob("*.json"):
        shutil.copy(made, FOLDER)
    shutil.rmtree(work)
    return 0


def main(*, out: Path, again: bool, only: Sequence[str]) -> int:
    """Record if asked to, print the report and write it to *out*."""
    if again and (status := record(only)):
        return status
    text = report(load_all())
    print(text, flush=True)
    out.write_text(text)
    return 0
