"""Events for a person: a live bar on a terminal, plain lines elsewhere.

Progress and warnings go to stderr, the outcome to stdout.  The bar is drawn from the loop
that receives the events, never by a thread of its own: a begin wants one thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dmcopy.core import events
from dmcopy.units import format_size

_LINE_SECONDS: Final = 10.0
_BAR_SECONDS: Final = 0.1


def duration(seconds: float) -> str:
    """Write a time for a person: ``4.2 s``, ``3:07``, ``1:02:30``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def hold_time(seconds: float) -> str:
    """Write a hold, which is short: ``0.4 ms``."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def rate_text(event: events.Progress) -> str:
    """Write rate and remaining time; "" while they are not known."""
    if not event.rate_bytes:
        return ""
    rate = f"{format_size(round(event.rate_bytes))}/s"
    if event.eta_seconds is None or event.bytes_done >= event.bytes_total:
        return rate
    return f"{rate}, {duration(event.eta_seconds)} left"


def cow_text(event: events.Progress) -> str:
    """Write how full the COW device is, and when it would be full; "" where there is none."""
    if event.cow_used_bytes is None or not event.cow_total_bytes:
        return ""
    share = event.cow_used_bytes / event.cow_total_bytes
    text = f"COW {share:.0%} of {format_size(event.cow_total_bytes)}"
    return ", ".join(filter(None, [text, forecast_text(event.first, event.cow_full)]))


def forecast_text(first: str | None, full: Sequence[float | None] | None) -> str:
    """Write when the COW device would be full, if that may be before the copy is done."""
    if full is None or first not in ("full", "unsure"):
        return ""
    low, _, high = full
    when = f"full in {duration(low or 0)} " + (
        f"to {duration(high)}" if high is not None else "or later"
    )
    return f"{when}, before the copy is done" if first == "full" else when


def happened(event: events.Event) -> str:
    """Say in words what happened to a job; "" where the event is not of that kind."""
    match event:
        case events.Hook():
            why = f": {event.message}" if event.message else ""
            took = hold_time(event.seconds)
            return f"hook {event.hook} {event.side}: {event.status} after {took}{why}"
        case events.Grown():
            return (
                f"COW device grown to {format_size(event.cow_total_bytes)}, of at most "
                f"{format_size(event.cow_most_bytes)}"
            )
        case events.Braked():
            return _braked(event)
        case events.Waiting():
            return _waiting(event)
        case events.Queued():
            return f"waits until fewer than {event.jobs} others run (dmcopy set --host jobs=N)"
        case events.Paused():
            return f"paused at {format_size(event.bytes_done)}; the point in time stays"
        case events.Resumed():
            return f"going on as of {event.begin_time}: {format_size(event.bytes_done)} are done"
        case events.Warned():
            return f"warning: {event.message}"
        case events.Verified():
            return f"verified: read back in {duration(event.seconds)}, the digest is right"
        case events.Twin():
            return _twin(event)
    return ""


def _waiting(event: events.Waiting) -> str:
    far = ""
    if event.bytes_total and event.bytes_done is not None:
        far = f" ({event.bytes_done / event.bytes_total:.0%})"
    return f"waiting for the {event.reason} of {event.device}{far}; nothing is fixed before that"


def _twin(event: events.Twin) -> str:
    """Say what a copy and its source have in common, or no longer have."""
    said = "; ".join(event.identity)
    if event.new:
        kept = f"; as on the source: {'; '.join(event.kept)}" if event.kept else ""
        return f"the copy has an identity of its own: {said}{kept}"
    hidden = " (udev leaves it alone meanwhile)" if event.hidden else ""
    rest = event.destination.partition(":")[2]
    hand = f", or by hand: {event.by_hand}" if event.by_hand else ""
    return (
        f"the copy has the identity of its source, {said}: do not mount, activate or assemble "
        f"both on one host{hidden}; a new identity: dmcopy identity {rest} --new{hand}"
    )


NO_DIGEST: Final = "not known (none was asked for, or the copy was not made in one go)"


class TextReport:
    """Shows one job; `close` when it is over, in every case."""

    def __init__(
        self, out: Console, err: Console, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._err = err
        self._clock = clock
        self._live: Live | None = None
        self._shown = -_LINE_SECONDS
        self._finished = ""  # the phase whose 100 % was shown

    def __call__(self, event: events.Event) -> None:
        if event.group is not None:
            self._of_member(event)
            return
        match event:
            case events.Planned():
                self._planned(event)
            case events.Begun():
                self._begun(event)
            case events.Progress():
                self._progress(event)
            case events.Braked():
                self._say(happened(event), style="yellow" if event.milliseconds else "")
            case events.Waiting() | events.Queued():
                self._say(happened(event))
            case events.Hook():
                well = event.status in ("done", "ready")
                self._say(happened(event), style="" if well else "yellow")
            case events.Grown() | events.Paused() | events.Resumed() | events.Verified():
                self._say(happened(event))
            case events.Twin():
                self._say(happened(event), style="" if event.new else "yellow")
            case events.Segment():
                pass  # many a second; what they come to is told at the end
            case events.Warned():
                self._say(happened(event), style="yellow")
            case events.Ended():
                self.close()
                self._ended(event)

    def _of_member(self, event: events.Event) -> None:
        """Say what happened to one volume of a group; how far all are is one bar."""
        told = happened(event)
        if told and not isinstance(event, events.Resumed):
            self._say(f"{event.job}: {told}", style="yellow" if _is_odd(event) else "")

    def close(self) -> None:
        """Draw no more; what was drawn last stays on the screen.  Twice is fine."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str, *, style: str = "") -> None:
        console = self._live.console if self._live is not None else self._err
        console.print(Text(line, style=style), soft_wrap=True)

    def _planned(self, event: events.Planned) -> None:
        self._say(
            f"{event.job}: {event.source} ({format_size(event.bytes_total)}) -> {event.destination}"
        )
        if event.members:
            self._say(f"{event.why}: {', '.join(event.members)}")
        if event.cow is not None:
            self._say(f"COW device: {event.cow}")
            if not event.retire:
                self._say(f"what is copied stays in the snapshot: {event.retire_why}")

    def _begun(self, event: events.Begun) -> None:
        held = f", writes held for {hold_time(event.hold_seconds[0])}" if event.hold_seconds else ""
        if event.holds:
            held = f", writes held: {_holds(event.holds)}"
        self._say(f"begin time {event.begin_time}{held}")

    def _progress(self, event: events.Progress) -> None:
        now = self._clock()
        last = event.bytes_done >= event.bytes_total
        if last and self._finished == event.phase:
            return
        self._finished = event.phase if last else ""
        if not self._err.is_terminal:
            if now - self._shown >= _LINE_SECONDS or last:
                self._shown = now
                self._say(self._line(event))
            return
        if now - self._shown < _BAR_SECONDS and not last:
            return
        self._shown = now
        if self._live is None:
            self._live = Live(console=self._err, auto_refresh=False)
            self._live.start()
        self._live.update(_bar(event), refresh=True)
        if last:
            self.close()  # a finished bar stays, the next phase draws its own

    @staticmethod
    def _line(event: events.Progress) -> str:
        share = event.bytes_done / event.bytes_total
        parts = [f"{event.phase} {share:.0%}", format_size(event.bytes_done)]
        return ", ".join([*parts, *filter(None, [rate_text(event), cow_text(event)])])

    def _ended(self, event: events.Ended) -> None:
        if event.error is not None:
            return  # the command line says it, once, as it says every error
        if event.members:
            self._out.print(_group_table(event))
            return
        held = ", ".join(hold_time(seconds) for seconds in event.hold_seconds)
        if event.retire_hold_seconds is not None:
            held += f"; {event.retires} times to retire, {_spread(event.retire_hold_seconds)}"
        if event.gate_hold_seconds is not None:
            held += (
                f"; {event.gate_writes_held} of them for {event.gated} segments, "
                f"{_spread(event.gate_hold_seconds)}"
            )
        rows = [
            ("job", event.job),
            ("copied", f"{format_size(event.bytes_total)} in {duration(event.seconds)}"),
            ("begin time", event.begin_time or "-"),
            *([("of it earlier", format_size(event.bytes_resumed))] if event.bytes_resumed else []),
            (
                "of it",
                f"{format_size(event.bytes_cow)} from the COW device "
                f"({event.exceptions} exceptions), {format_size(event.bytes_zero)} zeroes",
            ),
            *([("retired", format_size(event.bytes_retired))] if event.bytes_retired else []),
            ("writes held", held or "never"),
            ("sha256", event.digest or NO_DIGEST),
            ("verified", "yes, read back" if event.verified else "no (--verify reads it back)"),
            *([("kept", f"the snapshot; end it: dmcopy cancel {event.job}")] if event.kept else []),
        ]
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name), Text(value, overflow="fold"))
        self._out.print(table)


def _group_table(event: events.Ended) -> Table:
    rows = [
        ("job", event.job),
        ("copied", f"{format_size(event.bytes_total)} in {duration(event.seconds)}"),
        ("begin time", event.begin_time or "-"),
        ("writes held", _holds(event.holds or {}) or "never"),
        ("verified", "yes, read back" if event.verified else "no (--verify reads it back)"),
        *([("kept", f"the snapshots; end it: dmcopy cancel {event.job}")] if event.kept else []),
    ]
    for member in event.members:
        where = f"{member['job']}: {member['source']} -> {member['destination']}"
        rows.append(("volume", f"{where}, sha256 {member['digest'] or NO_DIGEST}"))
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value, overflow="fold"))
    return table


def _holds(holds: Mapping[str, float]) -> str:
    return ", ".join(f"{source} {hold_time(seconds)}" for source, seconds in holds.items())


def _is_odd(event: events.Event) -> bool:
    """Tell whether a person should look."""
    return isinstance(event, events.Warned) or (
        isinstance(event, events.Braked) and event.milliseconds > 0
    )


def _spread(times: Sequence[float]) -> str:
    median, p99, most = times
    return f"{hold_time(median)} (median), {hold_time(p99)} (p99), {hold_time(most)} at most"


def _braked(event: events.Braked) -> str:
    if not event.milliseconds:
        return "writers are no longer held"
    return (
        f"the COW device is nearly full: each write to what is not copied yet waits up to "
        f"{event.milliseconds} ms"
    )


def _bar(event: events.Progress) -> RenderableType:
    """Draw one line with a bar, and one with what matters beside it."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_row(
        Text(event.phase, style="bold"),
        ProgressBar(total=event.bytes_total, completed=event.bytes_done),
        Text(f"{event.bytes_done / event.bytes_total:4.0%}  {rate_text(event)}"),
    )
    parts = [f"{format_size(event.bytes_done)} of {format_size(event.bytes_total)}"]
    if event.bytes_cow:
        parts.append(f"{format_size(event.bytes_cow)} from COW")
    parts += filter(None, [cow_text(event)])
    return Group(grid, Text("  ".join(parts), style="dim", no_wrap=True, overflow="ellipsis"))
