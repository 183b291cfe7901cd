"""The parts of a report that lie over time: progress, forecast, holds, the application's writes.

All charts have the same time axis, one below the other, so that what happened at once is seen
at one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from dmcopy.core.history import History, Sample
from dmcopy.report import figures
from dmcopy.report.chart import Chart, Mark, Point, Step, key
from dmcopy.report.markup import Inside, Node, tag
from dmcopy.report.parts import legend, section, table
from dmcopy.report.scale import Scale, brief, counts, decades, moment, percent, times
from dmcopy.units import format_size, to_bytes

_BEYOND: Final = 1.6  # forecasts up to so many times the time of the copy are drawn
_WIDE_RANGE: Final = 25  # latencies further apart than this need a logarithmic axis

_WORDS: Final = {"before": "before", "copy": "copy", "verify": "read back", "after": "after"}


class Timeline:
    """Draws one history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._samples = history.samples
        first = min((s.at - s.span for s in self._samples), default=0.0)
        last = max((s.at for s in self._samples), default=0.0)
        holds = [hold.at for hold in history.holds]
        room = (max([last, *holds]) - min([first, *holds])) * 0.01
        self._times = times(min([first, *holds, 0.0]) - room, max([last, *holds]) + room)
        self._copied_at = figures.copied_at(history)

    def progress(self) -> Node:
        """Show how far the copy was and how full the COW device, and what was forecast."""
        return section(
            "progress",
            "Progress and COW device",
            "How much of the image was copied, and how full the COW device was, since the begin "
            "time (0:00).",
            tag("div", self._progress_chart(), self._progress_side(), class_="row"),
            *self._forecast(),
        )

    def holds(self) -> Node:
        """Show when writes were held, for how long, and why."""
        history = self._history
        heading = "Holds"
        if not history.holds:
            return section(
                "holds", heading, "No write of the application was held, as far as was seen."
            )
        chart = self._chart(
            "chart-holds",
            decades(hold.seconds for hold in history.holds),
            height=170,
            title="How long writes were held, at which time, by reason",
        )
        for hold in history.holds:
            text = f"{hold.reason}: {brief(hold.seconds)}, at {moment(hold.at)}"
            chart.dot(Point(hold.at, hold.seconds), hold.reason, text)
        found = figures.holds(history.holds)
        rows: list[list[Inside]] = [
            [
                tag("span", key(one.reason, dot=True), one.reason),
                f"{one.how_many}",
                brief(one.median),
                brief(one.p99),
                brief(one.most),
            ]
            for one in found
        ]
        side = [table(("reason", "count", "median", "p99", "longest"), rows)]
        if history.holds_lost:
            side.append(
                tag(
                    "p",
                    f"{history.holds_lost} holds are not among these: where there are many, only "
                    "the longest are kept, so count and median are of those.",
                    class_="note",
                )
            )
        return section(
            "holds",
            heading,
            "Each time that the application's writes were made to wait (logarithmic).",
            tag("div", chart.node(), tag("div", *side), class_="row"),
        )

    def writes(self) -> Node:
        """Show the application's own writes: how long they took, and how many there were."""
        heading = "The application's writes"
        means = [mean for s in self._samples if (mean := figures.latency(s)) is not None]
        if not means:
            return section(
                "writes", heading, "The application wrote nothing, or its writes could not be seen."
            )
        wide = max(means) > _WIDE_RANGE * max(min(means), 1e-9)
        latency = self._chart(
            "chart-latency",
            decades(means) if wide else counts(max(means), _short),
            height=170,
            title="Mean latency of the application's writes, over time",
        )
        latency.steps(self._steps(figures.latency, self._told_latency), "latency")
        rates = [sample.writes / sample.span for sample in self._samples if sample.span > 0]
        rate = self._chart(
            "chart-rate",
            counts(max(rates, default=0.0), _thousands),
            height=110,
            title="Writes a second of the application, over time",
        )
        rate.steps(self._steps(_rate, self._told_latency), "rate")
        found = figures.phases(self._samples)
        rows: list[list[Inside]] = [
            [
                tag("span", _WORDS[one.phase]),
                f"{one.writes:,}",
                _thousands(one.rate) if one.rate is not None else "-",
                brief(one.mean) if one.mean is not None else "-",
                brief(one.worst) if one.worst is not None else "-",
            ]
            for one in found
        ]
        side = [table(("", "writes", "per s", "mean", "worst"), rows)]
        ratio = figures.slowdown(found)
        if ratio is not None:
            side.append(
                tag(
                    "p",
                    f"While it was copied, a write took {ratio:.2f} times as long as before, on "
                    "average.",
                )
            )
        side.append(
            tag(
                "p",
                "As the block layer counts them, holds included.  Worst: the mean of the worst "
                "sample, not of a single write.",
                class_="note",
            )
        )
        return section(
            "writes",
            heading,
            "What the application felt before, during and after the copy.",
            tag(
                "div",
                tag(
                    "div",
                    tag("h3", "Mean latency" + (", logarithmic" if wide else "")),
                    latency.node(),
                    tag("h3", "Writes a second"),
                    rate.node(),
                ),
                tag("div", *side),
                class_="row",
            ),
        )

    # Progress, and the forecast.

    def _progress_chart(self) -> Node:
        axis = counts(1.0, lambda value: f"{value:.0%}")
        chart = self._chart(
            "chart-progress",
            axis,
            height=230,
            title="Copied and retired share of the image, and use of the COW device, over time",
        )
        whole = max(to_bytes(self._history.length), 1)
        copied = [Point(s.at, s.bytes_done / whole) for s in self._progressing()]
        chart.area(copied, "copied")
        chart.line(copied, "copied")
        if self._retired():
            retired = [Point(s.at, s.bytes_retired / whole) for s in self._progressing()]
            chart.line(retired, "retired")
        used = [(s.at, figures.cow_share(s)) for s in self._samples]
        chart.line([Point(at, share) for at, share in used if share is not None], "cow")
        chart.told(self._steps(lambda _: None, self._told_progress))
        return chart.node()

    def _progressing(self) -> list[Sample]:
        """Give the samples of the copy; while it is verified, what is done counts anew."""
        whole = to_bytes(self._history.length)
        return [
            s if s.phase != "verify" or s.bytes_done >= whole else replace(s, bytes_done=whole)
            for s in self._samples
        ]

    def _retired(self) -> bool:
        return any(sample.bytes_retired for sample in self._samples)

    def _progress_side(self) -> Node:
        samples, whole = self._progressing(), to_bytes(self._history.length)
        done = max((s.bytes_done for s in samples), default=0)
        entries = [(key("copied"), f"copied: {format_size(done)} of {format_size(whole)}")]
        if self._retired():
            most = max(s.bytes_retired for s in samples)
            entries.append((key("retired"), f"retired: {format_size(most)}"))
        peak = figures.cow_peak(samples)
        if peak is not None:
            share = figures.cow_share(peak) or 0.0
            entries.append(
                (
                    key("cow"),
                    f"COW device: at most {percent(share)}, {format_size(peak.cow_used or 0)} of "
                    f"{format_size(peak.cow_total or 0)}",
                )
            )
        entries.append((key("band copy", fill=True), "it was copied"))
        if any(s.phase == "verify" for s in samples):
            entries.append((key("band verify", fill=True), "it was read back (--verify)"))
        notes: list[Inside] = [legend(entries)]
        if self._retired():
            notes.append(
                tag(
                    "p",
                    "Retired: copied, and out of the snapshot; writes there cost no room on the "
                    "COW device any more.",
                    class_="note",
                )
            )
        return tag("div", *notes)

    def _forecast(self) -> list[Node]:
        told = [s for s in self._samples if s.done_at is not None or s.full_at is not None]
        if not told:
            return []
        end = self._copied_at
        expected = [s.done_at for s in told if s.done_at is not None]
        high = _BEYOND * (end or max([s.at for s in told] + expected[-1:]))
        chart = self._chart(
            "chart-forecast",
            times(0.0, high),
            height=170,
            title="When the copy was forecast to be done, over time, and when it was",
        )
        latest = min(self._times.high, high)
        chart.line([Point(0.0, 0.0), Point(latest, latest)], "now")
        for points in _runs([(s.at, s.full_at) for s in self._samples], high):
            chart.line(points, "cow")
        for points in _runs([(s.at, s.done_at) for s in self._samples], high):
            chart.line(points, "copied")
        entries = [(key("copied"), "forecast: everything copied")]
        if end is not None:
            chart.level(end, f"it was: {moment(end)}", "actual")
            entries.append((key("actual"), "when it was"))
        if any(s.full_at is not None for s in told):
            entries.append((key("cow"), "forecast: COW device full"))
        full = figures.full_at(self._history)
        if full is not None:
            chart.level(full, f"it was full: {moment(full)}", "full")
            entries.append((key("full"), "when it was full"))
        entries.append((key("now"), "now: below it is the past"))
        side: list[Inside] = [legend(entries), *self._judged(), *self._full(high)]
        return [
            tag(
                "div",
                tag(
                    "div",
                    tag("h3", "Forecast of the end, at each time"),
                    chart.node(),
                ),
                tag("div", *side),
                class_="row",
                id="forecast",
            )
        ]

    def _judged(self) -> Iterable[Node]:
        """Compare what was forecast with what came."""
        end = self._copied_at
        found = figures.looks(self._history)
        if end is None or not found:
            return
        rows: list[list[Inside]] = [
            [
                tag("span", f"{look.share:.0%} ({moment(look.at)})"),
                moment(look.done_at),
                _off((look.done_at - end) / end),
            ]
            for look in found
        ]
        yield table(("of the time", "forecast", "off by"), rows)

    def _full(self, high: float) -> Iterable[Node]:
        """Tell whether the COW device was ever expected to be full first."""
        early = [
            s
            for s in self._samples
            if s.full_at is not None and s.done_at is not None and s.full_at < s.done_at
        ]
        if early:
            first = early[0]
            text = (
                f"At {moment(first.at)} the COW device was forecast to be full at "
                f"{moment(first.full_at or 0)}, before the end of the copy; "
                f"{len(early)} of {len(self._samples)} samples say so."
            )
        elif any(s.full_at is not None for s in self._samples):
            text = "The COW device was never forecast to be full before the end of the copy."
            if not any(s.full_at is not None and s.full_at <= high for s in self._samples):
                text += "  That would have been later than this chart shows."
        else:
            text = "The COW device was not forecast to become full."
        yield tag("p", text, class_="note")

    # What the charts share.

    def _chart(self, name: str, values: Scale, *, height: int, title: str) -> Chart:
        """Begin a chart: the copy is shaded, and its begin and end are marked."""
        chart = Chart(name, self._times, values, height=height, title=title)
        last = max((s.at for s in self._samples if s.phase == "copy"), default=0.0)
        end = last if self._copied_at is None else self._copied_at
        chart.band(0.0, end, "copy")
        verified = max((s.at for s in self._samples if s.phase == "verify"), default=end)
        if verified > end:
            chart.band(end, verified, "verify")
        for mark in self._marks():
            chart.mark(mark)
        return chart

    def _marks(self) -> Iterable[Mark]:
        """Give the begin time and the end of the copy, so that their texts have room.

        In a narrow window the first text takes 0.22 of the chart's width, the other 0.15.
        """
        begin = self._times.share(0.0)
        if self._copied_at is None:
            yield Mark(0.0, "begin time", "right" if begin < 0.78 else "left")
            return
        end = self._times.share(self._copied_at)
        is_close = end - begin < 0.3
        is_told = not is_close or begin >= 0.22  # the axis says 0:00 all the same
        yield Mark(0.0, "begin time" if is_told else "", "left" if is_close else "right")
        yield Mark(
            self._copied_at, "copied", "right" if end <= 0.85 else "edge" if is_close else "left"
        )

    def _steps(
        self, value: Callable[[Sample], float | None], told: Callable[[Sample], str]
    ) -> list[Step]:
        """Give the samples as steps: each over the time since the one before."""
        return [
            Step(sample.at - sample.span, sample.at, value(sample), told(sample))
            for sample in self._samples
        ]

    def _told_progress(self, sample: Sample) -> str:
        whole = max(to_bytes(self._history.length), 1)
        share = figures.cow_share(sample)
        parts = [
            f"{moment(sample.at)}: {sample.bytes_done / whole:.1%} done ({sample.phase})",
            f"retired {sample.bytes_retired / whole:.1%}",
        ]
        if share is not None:
            parts.append(f"COW {share:.1%} of {format_size(sample.cow_total or 0)}")
        if sample.done_at is not None:
            parts.append(f"forecast end {moment(sample.done_at)}")
        return ", ".join(parts)

    def _told_latency(self, sample: Sample) -> str:
        mean = figures.latency(sample)
        start = moment(sample.at - sample.span)
        return (
            f"{start} to {moment(sample.at)} ({sample.phase}): {sample.writes:,} writes, "
            f"mean {brief(mean) if mean is not None else '-'}"
        )


def _runs(points: Iterable[tuple[float, float | None]], high: float) -> list[list[Point]]:
    """Cut where a value is not known, or above *high*: there the line leaves the chart."""
    runs: list[list[Point]] = [[]]
    for at, value in points:
        if value is not None and value <= high:
            runs[-1].append(Point(at, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _rate(sample: Sample) -> float | None:
    return sample.writes / sample.span if sample.span > 0 else None


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"


def _short(seconds: float) -> str:
    return brief(seconds) if seconds else "0"


def _off(share: float) -> str:
    """Write by how much a forecast was off; less than half a per cent is right."""
    text = f"{share:+.0%}"
    return "0%" if text[1:] == "0%" else text
