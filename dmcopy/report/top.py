"""`dmcopy top`: all jobs as lines of a given width, each no wider than that.

What does not fit is said: columns go, the least telling first; names lose their middle; jobs
that are not shown are counted.  `report.painter` brings the lines onto a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from dmcopy.report.jobs_now import STATES, JobNow, Now
from dmcopy.report.text import duration, forecast_text

_GAP: Final = " "
_INDENT: Final = "    "
_LEAST_NAME: Final = 16  # cells for a job's name; a column goes before that
_WIDE: Final = 132  # from here on source and destination stand in the job's own line
_LEAST_PATHS: Final = 40
_BAR: Final = 10
_STYLES: Final = {
    "copying": "green", "begun": "green", "copied": "green", "verified": "green",
    "paused": "yellow", "interrupted": "bold yellow", "kept": "yellow",
    "failed": "red", "dead": "bold red", "unknown": "bold red",
}  # fmt: skip


class Glyphs(NamedTuple):
    """What a terminal can draw."""

    full: str
    empty: str
    arrow: str
    cut: str


UNICODE: Final = Glyphs("\N{FULL BLOCK}", "\N{MIDDLE DOT}", "\N{RIGHTWARDS ARROW}", "…")
ASCII: Final = Glyphs("#", ".", "->", "~")


def compact(n: float) -> str:
    """Write a number of bytes in at most six cells: ``1023.9M``, ``12.0G``, ``512``."""
    value = float(n)
    for unit in ("", "K", "M", "G", "T", "P"):
        if abs(round(value, 1)) < 1000 or unit == "P":
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1024
    raise AssertionError("unreachable")


def short_time(seconds: float) -> str:
    """Write a hold in at most six cells: ``0.4ms``, ``12.3s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.09995 else 0}f}ms"
    return f"{seconds:.{1 if seconds < 99.95 else 0}f}s"


def clean(text: str) -> str:
    """Make a text safe to print on a terminal: paths may have any byte but NUL in them."""
    return "".join(char if char.isprintable() else "?" for char in text)


def cut(text: str, width: int, glyphs: Glyphs = UNICODE) -> str:
    """Shorten a text to *width* cells; the middle goes, for names differ at both ends."""
    if cell_len(text) <= width:
        return text
    if width <= cell_len(glyphs.cut):
        return set_cell_size(text, max(width, 0))
    room = width - cell_len(glyphs.cut)
    head = set_cell_size(text, room // 2)
    tail = ""
    for char in reversed(text):
        if cell_len(char + tail) > room - room // 2:
            break
        tail = char + tail
    return f"{head}{glyphs.cut}{tail}"


def _left(job: JobNow) -> str:
    if job.is_over:
        return f"in {duration(job.took)}" if job.took is not None else ""
    if job.left is None or job.done == job.total:
        return ""
    return duration(job.left) if job.left < 100 * 3600 else f"{job.left / 86400:.0f} days"


def _share(job: JobNow) -> float | None:
    return job.done / job.total if job.done is not None and job.total else None


def _done(job: JobNow) -> str:
    share = _share(job)
    if share is None:
        return ""
    return f"{'v' if job.phase == 'verify' and job.is_running else ''}{int(share * 100)}%"


def _cow(job: JobNow) -> str:
    """Say how full the COW device is, and how full it will be when all is copied."""
    if job.cow_used is None or not job.cow_total:
        return ""
    used = f"{job.cow_used / job.cow_total:.0%}"
    if job.cow_needed is None:
        return used
    return f"{used}>{min(job.cow_needed / job.cow_total, 9.99):.0%}"


def _retired(job: JobNow) -> str:
    if not job.retired or not job.total:
        return ""
    return f"{job.retired / job.total:.0%}"


def _hold(job: JobNow) -> str:
    if job.held is None:
        return ""
    last = job.held["last_seconds"]
    return f"{short_time(job.held['p99_seconds'])}/{short_time(last) if last is not None else '-'}"


class _Column(NamedTuple):
    heading: str
    width: int
    cell: Callable[[JobNow], str]
    rank: int  # the highest goes first where there is no room
    right: bool = True


_STATE_WIDTH: Final = max(map(len, STATES))
_COLUMNS: Final = (
    _Column("STATE", _STATE_WIDTH, lambda job: job.state, 0, right=False),
    _Column("DONE", 5, _done, 1),
    _Column("RATE/s", 6, lambda job: compact(job.rate) if job.rate else "", 3),
    _Column("LEFT", 8, _left, 2),
    _Column("COW>END", 8, _cow, 4),
    _Column("RETD", 4, _retired, 6),
    _Column("HOLD p99/last", 13, _hold, 5),
)


class _Layout(NamedTuple):
    """What a line of a job is made of, at one width."""

    width: int
    name: int
    columns: tuple[_Column, ...]
    bar: int  # 0: none
    paths: int  # of source and destination in the same line; 0: they have a line of their own
    glyphs: Glyphs


def _layout(now: Now, width: int, glyphs: Glyphs) -> _Layout:
    columns = list(_COLUMNS)
    names = max((cell_len(_name(job)) for job in now.jobs), default=0)

    def room() -> int:
        return width - sum(column.width + len(_GAP) for column in columns)

    while columns and room() < (_LEAST_NAME if len(columns) > 1 else 1):
        columns.remove(max(columns, key=lambda column: column.rank))
    bar = paths = 0
    name = max(room(), 1)
    if width >= _WIDE:
        bar = _BAR
        rest = room() - bar - 2 * len(_GAP)
        name = min(max(names, 3), rest - _LEAST_PATHS)
        paths = rest - name
    return _Layout(width, name, tuple(columns), bar, paths, glyphs)


def _name(job: JobNow) -> str:
    return f"  {clean(job.job)}" if job.group is not None else clean(job.job)


def _padded(text: str, width: int, *, right: bool) -> str:
    text = set_cell_size(text, width) if cell_len(text) > width else text
    fill = " " * (width - cell_len(text))
    return fill + text if right else text + fill


def _paths(job: JobNow, width: int, glyphs: Glyphs) -> str:
    """Write where from and where to; both are shortened alike."""
    if not job.source:
        return ""
    between = f" {glyphs.arrow} "
    source, destination = clean(job.source), clean(job.destination)
    room = width - cell_len(between)
    most = max(room // 2, room - cell_len(destination))
    source = cut(source, most, glyphs)
    return f"{source}{between}{cut(destination, room - cell_len(source), glyphs)}"


def _bar(job: JobNow, layout: _Layout) -> str:
    share = _share(job)
    if share is None or job.is_over:
        return " " * layout.bar
    full = int(share * layout.bar)
    return layout.glyphs.full * full + layout.glyphs.empty * (layout.bar - full)


def _job_lines(job: JobNow, layout: _Layout) -> Iterator[Text]:
    style = "" if job.is_running else "dim" if job.is_over else ""
    line = Text(style=style, no_wrap=True, end="")
    name = cut(_name(job), layout.name, layout.glyphs)
    line.append(_padded(name, layout.name, right=False), "bold" if job.is_running else "")
    for column in layout.columns:
        text = _padded(column.cell(job), column.width, right=column.right)
        line.append(_GAP)
        line.append(text, _STYLES.get(job.state, "") if column.heading == "STATE" else "")
        if layout.bar and column.heading == "DONE":
            line.append(_GAP + _bar(job, layout))
    if layout.paths:
        line.append(_GAP + _paths(job, layout.paths, layout.glyphs))
    line.rstrip()
    yield line
    if not layout.paths and job.source and not job.is_group:
        yield _note(_paths(job, layout.width - len(_INDENT), layout.glyphs), layout, "dim")
    for text, style in _notes(job):
        for part in _folded(text, layout.width - len(_INDENT)):
            yield _note(part, layout, style)


def _note(text: str, layout: _Layout, style: str) -> Text:
    room = max(layout.width - len(_INDENT), 0)
    return Text(f"{_INDENT}{cut(text, room, layout.glyphs)}"[: layout.width], style, end="")


def _notes(job: JobNow) -> Iterator[tuple[str, str]]:
    """Say what a person should know of a job: each with its style."""
    forecast = forecast_text(job.first, job.cow_full)
    if forecast:
        yield f"COW device {forecast}", "bold red" if job.first == "full" else "yellow"
    if job.way_on and job.group is None:
        yield clean(job.way_on), "yellow"
    elif job.error and job.state == "failed":
        yield clean(job.error), "red"


def _folded(text: str, width: int) -> Iterator[str]:
    """Break a text into lines at blanks; a word that is too long is shortened by whoever prints."""
    line = ""
    for word in text.split(" "):
        if line and cell_len(line) + 1 + cell_len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        yield line


def _head(now: Now, width: int, glyphs: Glyphs, keys: str) -> Text:
    """Say in one line what there is."""
    running = sum(job.is_running for job in now.jobs if job.group is None)
    rest = [job for job in now.jobs if job.group is None and not job.is_running]
    stopped = sum(not job.is_over for job in rest)
    parts = [f"{running} running", f"{stopped} stopped", f"{len(rest) - stopped} ended"]
    text = f"dmcopy: {', '.join(parts)}"
    text += f"; all together at most {compact(now.cap)}/s" if now.cap is not None else ""
    room = width - cell_len(keys) - len(_GAP)
    if keys and cell_len(text) <= room:
        text = _padded(text, room, right=False) + _GAP + keys
    return Text(cut(text, width, glyphs), "bold", end="")


def _headings(layout: _Layout) -> Text:
    line = _padded("JOB", layout.name, right=False)
    for column in layout.columns:
        line += _GAP + _padded(column.heading, column.width, right=column.right)
        if layout.bar and column.heading == "DONE":
            line += _GAP + " " * layout.bar
    if layout.paths:
        line += f"{_GAP}SOURCE {layout.glyphs.arrow} DESTINATION"
    return Text(set_cell_size(line, layout.width).rstrip(), "reverse", end="")


def lines(
    now: Now,
    width: int,
    *,
    height: int | None = None,
    glyphs: Glyphs = UNICODE,
    keys: str = "",
) -> list[Text]:
    """Give the whole view, at most *height* lines of at most *width* cells each.

    *keys* is what is said of the keys, at the right of the first line.
    """
    layout = _layout(now, width, glyphs)
    made = [_head(now, width, glyphs, keys)]
    if now.unread:
        made += [Text(part, "bold red", end="") for part in _cut_all(now.unread, layout)]
    if not now.jobs:
        made.append(Text(cut("no jobs", width, glyphs), end=""))
    else:
        made.append(_headings(layout))
        room = None if height is None else height - len(made)
        made += _fitting([list(_job_lines(job, layout)) for job in now.jobs], room, layout)
    return made if height is None else made[:height]


def _cut_all(text: str, layout: _Layout) -> Iterator[str]:
    for part in _folded(clean(text), layout.width):
        yield cut(part, layout.width, layout.glyphs)


def _fitting(blocks: Sequence[Sequence[Text]], room: int | None, layout: _Layout) -> Iterable[Text]:
    """Give the blocks that fit whole, and in the last line how many do not."""
    whole = [line for block in blocks for line in block]
    if room is None or len(whole) <= room:
        return whole
    made: list[Text] = []
    for index, block in enumerate(blocks):
        if len(made) + len(block) > room - 1:
            text = f"{len(blocks) - index} more that do not fit here (dmcopy list: all)"
            return [*made, Text(cut(text, layout.width, layout.glyphs), "reverse", end="")]
        made += block
    raise AssertionError("unreachable")


def plain(now: Now) -> list[str]:
    """Give one table for who reads no terminal: no colour, nothing shortened, a line a job."""
    heads = [*(column.heading for column in _COLUMNS), "SOURCE", "DESTINATION", "NOTE"]
    rows = [["JOB", *(head.replace(" ", "-") for head in heads)]]
    for job in now.jobs:
        notes = "; ".join(text for text, _ in _notes(job))
        cells = [clean(job.job), *(column.cell(job) for column in _COLUMNS)]
        cells += [clean(job.source), clean(job.destination), notes]
        rows.append([cell or "-" for cell in cells])
    widths = [max(cell_len(row[n]) for row in rows) for n in range(len(rows[0]))]
    table = [
        _GAP.join(
            _padded(cell, width, right=False) for cell, width in zip(row, widths, strict=True)
        )
        for row in rows
    ]
    head = _head(now, 1000, ASCII, "").plain
    return [head, *([clean(now.unread)] if now.unread else []), *(row.rstrip() for row in table)]
