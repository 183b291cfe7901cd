"""`dmcopy report`: one job as one HTML file, which needs nothing else and fetches nothing.

How it went is seen at the top; below it is what it was like over time, and over the image.
Values in, text out: who looks into the journal is `cli.report`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from dmcopy.core import events
from dmcopy.core.history import Held, History
from dmcopy.report import figures, image_map
from dmcopy.report.chart import key
from dmcopy.report.markup import Node, document, tag
from dmcopy.report.parts import legend, section
from dmcopy.report.scale import brief, moment, percent
from dmcopy.report.style import CSS
from dmcopy.report.text import NO_DIGEST, duration, happened
from dmcopy.report.timeline import Timeline
from dmcopy.units import SECTOR_SIZE, format_size

MARK: Final = "dmcopy report"
_LOG_LINES: Final = 300
_LONGEST_TEXT: Final = 500  # characters, of one event


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What there is of the job; but for *history* and *log*, as the journal has it."""

    job: str
    state: str  # in words
    tone: str  # good | bad | wait | busy
    made: float  # when the report is made, in seconds since 1970
    source: str = "-"
    destination: str = "-"
    created: float | None = None
    lost: str | None = None
    way_on: str = ""  # a command that goes on with it, or mends it
    begun: Mapping[str, Any] | None = None  # Any: JSON
    progress: Mapping[str, Any] | None = None  # Any: JSON
    ended: Mapping[str, Any] | None = None  # Any: JSON
    history: History | None = None
    log: Sequence[tuple[float, Mapping[str, Any]]] = ()  # when, and what; Any: JSON


def page(subject: Subject) -> str:
    """Give the whole page."""
    parts: list[Node] = list(_head(subject))
    history = subject.history
    if history is not None and history.samples:
        timeline = Timeline(history)
        parts += [timeline.progress(), timeline.holds(), timeline.writes(), _map(history)]
    else:
        parts.append(
            section(
                "no-history",
                "No history",
                "There is no history of this job: it ended before the copy began, or an older "
                "dmcopy made it.  How it went over time is not known.",
            )
        )
    parts.append(_log(subject))
    parts.append(
        tag(
            "footer",
            f"Made by dmcopy report at {_when(subject.made)}.  Sizes are binary (1 KiB = 1024 B); "
            "times without a date count from the begin time.",
        )
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"dmcopy {subject.job}: {subject.state}"),
        tag("style", CSS),
    )
    return document(MARK, tag("html", head, tag("body", tag("main", *parts)), lang="en"))


# The head: how it went.


def _head(subject: Subject) -> Iterable[Node]:
    yield tag("h1", f"Copy {subject.job}")
    yield tag("p", f"{subject.source} → {subject.destination}", class_="path")
    error = (subject.ended or {}).get("error") or subject.lost
    yield tag(
        "div",
        tag("strong", _headline(subject)),
        *([tag("p", str(error))] if error else []),
        tag("p", _in_short(subject)),
        *([tag("p", "Go on: " if subject.tone != "bad" else "Mend: ", tag("code", subject.way_on))]
          if subject.way_on else []),
        id="verdict",
        class_=f"verdict {subject.tone}",
    )  # fmt: skip
    yield tag(
        "div",
        *(
            tag("div", tag("span", name), tag("b", value), tag("span", more), class_="tile")
            for name, value, more in _tiles(subject)
        ),
        id="tiles",
        class_="tiles",
    )
    rows = [(name, value) for name, value in _facts(subject) if value]
    inside = [tag(kind, text) for row in rows for kind, text in zip(("dt", "dd"), row, strict=True)]
    yield tag("section", tag("dl", *inside), id="facts", class_="card")


class _Sums:
    """The sizes and times that the head tells, from what there is."""

    def __init__(self, subject: Subject) -> None:
        told: Mapping[str, Any] = subject.ended or subject.progress or {}  # Any: JSON
        history, ended = subject.history, subject.ended
        samples = history.samples if history is not None else []
        copying = [sample for sample in samples if sample.phase == "copy"]
        self.copied_at = figures.copied_at(history) if history is not None else None
        self.total: int = told.get("bytes_total") or (
            history.length * SECTOR_SIZE if history is not None else 0
        )
        is_whole = self.copied_at is not None or (ended is not None and not ended.get("error"))
        seen = max((sample.bytes_done for sample in copying), default=0)
        self.done: int = (
            self.total if is_whole else seen or (subject.progress or {}).get("bytes_done", 0)
        )
        self.from_cow: int = told.get("bytes_cow") or sum(
            cell.from_cow * SECTOR_SIZE for cell in (history.cells if history is not None else ())
        )
        # while it is paused nothing is copied, and nobody looks: only the time that was watched
        until = float("inf") if self.copied_at is None else self.copied_at
        self.copying: float = sum(sample.span for sample in copying if sample.at <= until)
        if ended is not None and not self.copying:
            self.copying = ended.get("copy_seconds") or ended.get("seconds") or 0.0
        self.peak = figures.cow_peak(samples)
        self.phases = figures.phases(samples)
        self.longest: Held | None = max(
            history.holds if history is not None else (), key=lambda one: one.seconds, default=None
        )

    @property
    def rate(self) -> float | None:
        return self.done / self.copying if self.copying and self.done else None

    def of(self, phase: str) -> figures.PhaseFigures | None:
        return next((one for one in self.phases if one.phase == phase), None)


def _headline(subject: Subject) -> str:
    ended = subject.ended or {}
    if subject.tone == "good":
        return "Done, read back and verified" if ended.get("verified") else "Done"
    return subject.state[:1].upper() + subject.state[1:]


def _expected(subject: Subject) -> str:
    """Say when a copy that runs is to be done."""
    samples = subject.history.samples if subject.history is not None else []
    if subject.tone != "busy" or not samples or samples[-1].done_at is None:
        return "not all is copied"
    return f"forecast to be done at {moment(samples[-1].done_at)}"


def _in_short(subject: Subject) -> str:
    """Say in a sentence or two how it went."""
    sums = _Sums(subject)
    if not sums.done:
        return "Nothing was copied." if subject.ended is not None else "Nothing is copied yet."
    share = f" of {format_size(sums.total)}" if sums.done < sums.total else ""
    text = f"{format_size(sums.done)}{share} copied in {duration(sums.copying)}"
    if sums.rate is not None:
        text += f", at {format_size(round(sums.rate))}/s"
    text += "."
    before, during = sums.of("before"), sums.of("copy")
    ratio = figures.slowdown(sums.phases)
    if ratio is not None and before and during and before.mean and during.mean:
        text += (
            f"  The application's writes took {ratio:.2f} times as long as before on average "
            f"({brief(before.mean)} → {brief(during.mean)})"
        )
        longest = sums.longest
        text += f"; the longest hold was {brief(longest.seconds)}." if longest is not None else "."
    elif sums.longest is not None:
        text += f"  The longest hold was {brief(sums.longest.seconds)} ({sums.longest.reason})."
    return text


def _tiles(subject: Subject) -> Iterable[tuple[str, str, str]]:
    """Give name, figure and more of each tile."""
    sums = _Sums(subject)
    share = sums.done / sums.total if sums.total else 0.0
    yield "Copied", format_size(sums.done), f"{_floored(share)} of {format_size(sums.total)}"
    took = moment(sums.copied_at) if sums.copied_at is not None else None
    whole = (subject.ended or {}).get("seconds")
    yield (
        "Time to copy",
        duration(sums.copying) if sums.copying else "-",
        f"all copied at {took}" if took is not None
        else f"the command took {duration(whole)}" if whole else _expected(subject),
    )  # fmt: skip
    yield (
        "Rate",
        f"{format_size(round(sums.rate))}/s" if sums.rate is not None else "-",
        "mean, while it was copied",
    )
    part = sums.from_cow / sums.done if sums.done else 0.0
    yield "From the COW device", format_size(sums.from_cow), f"{percent(part)} of what was copied"
    peak = sums.peak
    yield (
        "COW device, fullest",
        percent(figures.cow_share(peak) or 0.0) if peak is not None else "-",
        f"{format_size(peak.cow_used or 0)} of {format_size(peak.cow_total or 0)}, at "
        f"{moment(peak.at)}" if peak is not None else "no COW device was seen",
    )  # fmt: skip
    longest = sums.longest
    yield (
        "Longest hold",
        brief(longest.seconds) if longest is not None else "-",
        f"{longest.reason}, at {moment(longest.at)}" if longest is not None
        else "no hold was seen",
    )  # fmt: skip
    before, during = sums.of("before"), sums.of("copy")
    mean = during.mean if during is not None else None
    ratio = figures.slowdown(sums.phases)
    yield (
        "Write latency, during",
        brief(mean) if mean is not None else "-",
        f"mean; {ratio:.2f} times that before ({brief(before.mean or 0)})"
        if ratio is not None and before is not None else "mean; not known before",
    )  # fmt: skip
    rates = [one.rate if one is not None else None for one in (during, before)]
    yield (
        "Writes a second, during",
        f"{rates[0]:,.0f}" if rates[0] is not None else "-",
        f"{rates[1]:,.0f} before" if rates[1] is not None else "not known before",
    )


def _facts(subject: Subject) -> Iterable[tuple[str, str]]:
    ended, begun = subject.ended or {}, subject.begun or {}
    yield "Job", subject.job
    yield "Source", subject.source
    yield "Destination", subject.destination
    yield "State", subject.state
    if subject.created is not None:
        yield "Started", _when(subject.created)
    yield "Begin time", str(begun.get("begin_time") or ended.get("begin_time") or "")
    if not subject.ended:
        return
    yield "Took", duration(ended["seconds"]) if ended.get("seconds") else ""
    yield "Zeroes", format_size(ended.get("bytes_zero") or 0)
    earlier = ended.get("bytes_resumed")
    yield "Copied in an earlier session", format_size(earlier) if earlier else ""
    if not ended.get("error"):
        yield "sha256", str(ended.get("digest") or NO_DIGEST)
        is_read = "yes, read back" if ended.get("verified") else "no (--verify reads it back)"
        yield "Verified", is_read
    yield "Left behind", "; ".join(str(one) for one in ended.get("left") or ())


# The image, and the log.


def _map(history: History) -> Node:
    span = image_map.copied_span(history)
    cell = format_size(history.cell_size * SECTOR_SIZE)
    text = (
        f"{len(history.cells):,} cells of {cell} each, row by row from the start of the image "
        "(top left) to its end (bottom right)."
    )
    stops = ",".join(image_map.colour(n / 10) for n in range(11))
    most = image_map.most_from_cow(history)
    missing = [(key("key-hatch", fill=True), "not copied (yet)")]
    when = tag(
        "div",
        tag("h3", "When it was copied"),
        image_map.when_map(history),
        tag(
            "div",
            tag("span", moment(span.first) if span is not None else "-"),
            tag("i", style=f"background:linear-gradient(90deg,{stops})"),
            tag("span", moment(span.last) if span is not None else "-"),
            class_="scale",
        ),
        legend(missing),
    )
    cow = tag(
        "div",
        tag("h3", "How much of it came from the COW device"),
        image_map.cow_map(history),
        tag(
            "div",
            tag("span", "little"),
            tag("i", class_="fade"),
            tag("span", percent(most)),
            class_="scale",
        ),
        legend([(key("key-source", fill=True), "all of it from the source"), *missing]),
    )
    return section("image", "Map of the image", text, tag("div", when, cow, class_="maps"))


def _log(subject: Subject) -> Node:
    if not subject.log:
        return section("events", "What happened", "Nothing is recorded.")
    shown = subject.log[-_LOG_LINES:]
    begin = _begin(subject)
    rows = []
    for at, event in shown:
        since = moment(at - begin) if begin is not None else "-"
        cells = (_when(at), since, _said(event))
        rows.append(tag("tr", *(tag("td", cell) for cell in cells)))
    head = tag("tr", *(tag("th", word, scope="col") for word in ("time", "since begin", "what")))
    left_out = len(subject.log) - len(shown)
    text = (
        f"The last {len(shown)} events; {left_out} earlier ones are not shown."
        if left_out
        else ("What the job recorded, oldest first.")
    )
    listing = tag("table", tag("thead", head), tag("tbody", *rows), class_="log")
    return section("events", "What happened", text, listing)


def _begin(subject: Subject) -> float | None:
    """Give the begin time in seconds since 1970."""
    told = (subject.begun or subject.ended or {}).get("begin_time")
    try:
        return datetime.fromisoformat(str(told)).timestamp()
    except ValueError:
        return None


def _said(event: Mapping[str, Any]) -> str:  # Any: JSON
    """Give what an event says in words, or as it is where another version made it."""
    try:
        text = happened(events.from_json(event))
    except (KeyError, TypeError):
        text = ""
    if not text:
        words = (f"{name}={value}" for name, value in event.items() if name not in ("event", "job"))
        text = f"{event.get('event', '')}: {' '.join(words)}"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."


def _floored(share: float) -> str:
    """Write a share so that 100 % is all of it."""
    return f"{int(share * 100)}%"


def _when(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S %z}"
