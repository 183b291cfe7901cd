"""``dmcopy status``: which jobs there are, and how far they are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from dmcopy.cli.common import Commands, Context, consoles
from dmcopy.jobs.look import look
from dmcopy.jobs.membership import refuse_group
from dmcopy.jobs.overview import JobView, overview, view_of
from dmcopy.jobs.spec import CopySpec
from dmcopy.report.map_text import map_lines
from dmcopy.report.text import duration, forecast_text
from dmcopy.units import format_size

_LOG_LINES: Final = 20


def add(commands: Commands) -> None:
    """Add the commands to the command line."""
    for name, text, more in (
        ("status", "show jobs that have not ended, and how far they are", "running, paused, and "
         "interrupted ones that can be resumed or left something behind"),
        ("list", "show all jobs, ended ones too", "also those that have ended, and how.  How long "
         "these are kept: dmcopy set --host keep-jobs=N keep-days=N"),
    ):  # fmt: skip
        parser = commands.add_parser(
            name,
            help=text,
            description=f"Show the jobs of this host: {more}.  Changes nothing.",
            allow_abbrev=False,
        )
        if name == "status":
            parser.add_argument("job", nargs="?", metavar="JOB", help="show this job, in full")
        parser.add_argument("--json", action="store_true", help="one JSON object a job, on stdout")
        parser.set_defaults(run=run, everything=name == "list", job=None, map=False)
    show = commands.add_parser(
        "show",
        help="show one job in full",
        description="Show all that is known of a job, from the journal and the kernel, whether or "
        "not it runs.  Changes nothing.",
        allow_abbrev=False,
    )
    show.add_argument("job", metavar="JOB")
    show.add_argument(
        "--map",
        action="store_true",
        help="show where each part of the image is, and which writes wait",
    )
    show.add_argument("--json", action="store_true", help="one JSON object, on stdout")
    show.set_defaults(run=run, everything=True)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Show all jobs, or one."""
    host = context.host()
    if arguments.job is not None:
        views = [view_of(arguments.job, host)]
    elif arguments.everything:
        views = overview(host)
    else:
        views = [view for view in overview(host) if not view.is_over]
    if arguments.map:
        refuse_group(views[0].record, "show --map")
        image = look(views[0], host)
        if arguments.json:
            print(json.dumps(image.as_json()))
        else:
            out, _ = consoles()
            for line in map_lines(image, width=out.width):
                out.print(Text(line), soft_wrap=True)
        return 0
    if arguments.json:
        for view in views:
            print(json.dumps(view.as_json()))
        return 0
    out, _ = consoles()
    if not views:
        out.print("no jobs" if arguments.everything else "no jobs under way (dmcopy list: all)")
    elif arguments.job is not None:
        out.print(_whole(views[0]))
    else:
        out.print(_list(views))
    return 0


def state_text(view: JobView) -> str:
    """Say in words what state a job is in."""
    if view.pid is not None:
        return f"{view.state} (pid {view.pid})"
    if view.is_kept:
        return f"{view.state}, kept"
    if view.is_dead:
        return "interrupted" if view.can_resume else "dead"
    return view.state


def _done(view: JobView) -> str:
    record = view.record
    if record is None:
        return ""
    if record.ended is not None:
        return f"in {duration(record.ended['seconds'])}"
    if record.progress is None:
        return ""
    progress = record.progress
    share = f"{progress['phase']} {progress['bytes_done'] / progress['bytes_total']:.0%}"
    forecast = _forecast_of(view)
    return f"{share}, COW {forecast}" if forecast else share


def _forecast_of(view: JobView) -> str:
    """Say when the COW device of a running job would be full, if that may come too soon."""
    progress = view.record.progress if view.record is not None else None
    if progress is None or view.pid is None:
        return ""
    return forecast_text(progress.get("first"), progress.get("cow_full"))


def _list(views: list[JobView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("JOB", "STATE", "DONE", "SOURCE", "DESTINATION"):
        table.add_column(heading, overflow="fold")
    for view in views:
        spec = view.record.spec if view.record else {}
        row = (view.job, state_text(view), _done(view), spec.get("source"), spec.get("destination"))
        table.add_row(*(Text(cell or "-") for cell in row))
    return table


def _whole(view: JobView) -> Table:
    rows: list[tuple[str, str]] = [("job", view.job), ("state", state_text(view))]
    if view.record is not None:
        rows += _recorded(view.record.spec, view.record.created)
        if view.record.begun is not None:
            rows.append(("begin time", view.record.begun["begin_time"]))
        ended = view.record.ended
        if ended is not None:
            rows += [("copied", format_size(ended["bytes_total"])), ("took", _done(view)[3:])]
            rows += [(name, str(ended[name])) for name in ("digest", "error") if ended[name]]
        elif _done(view):
            rows.append(("done", _done(view)))
            rows += _forecast(view)
    rows += [("there is", line) for line in view.remains]
    rows += [("volume", _volume(member)) for member in view.members]
    whole = view.group or view.job
    if view.can_resume:
        if view.not_now is not None:
            rows.append(("but not now", view.not_now))
        rows.append(("go on", f"dmcopy resume {whole}"))
        rows.append(("give it up", f"dmcopy cancel {whole}"))
    elif view.is_kept:
        rows.append(("end it", f"dmcopy cancel {view.group or view.job}"))
    elif view.is_dead:
        rows.append(("cannot go on", str(view.no_way_on)))
        rows.append(("mend", f"dmcopy rescue {whole}"))
    rows += [_happened(at, event) for at, event in view.log[-_LOG_LINES:]]
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value, overflow="fold"))
    return table


def _volume(view: JobView) -> str:
    """Say in one line what there is of a group's member."""
    spec = view.record.spec if view.record is not None else {}
    done = _done(view)
    parts = [f"{view.job}: {spec.get('source')} -> {spec.get('destination')}", state_text(view)]
    return ", ".join([*parts, *([done] if done else [])])


def _forecast(view: JobView) -> list[tuple[str, str]]:
    """Say how full the COW device is, and what is to be expected of it."""
    progress = view.record.progress if view.record is not None else None
    if progress is None or not progress.get("cow_total_bytes") or view.members:
        return []
    assert view.record is not None
    share = progress["cow_used_bytes"] / progress["cow_total_bytes"]
    rows = [("COW device", f"{share:.0%} of {format_size(progress['cow_total_bytes'])}")]
    retires, why = CopySpec.from_json(view.record.spec).retires()
    retired = format_size(progress.get("bytes_retired", 0)) if retires else f"nothing: {why}"
    rows.append(("retired", retired))
    forecast = _forecast_of(view)
    return rows + ([("forecast", forecast)] if forecast else [])


def _happened(at: float, event: Mapping[str, Any]) -> tuple[str, str]:  # Any: JSON
    """Give a line of the job's log: when, and what."""
    when = datetime.fromtimestamp(at).astimezone()
    words = {name: value for name, value in event.items() if name not in ("event", "job")}
    text = words.get("message") or words.get("error") or words
    if isinstance(text, dict):
        text = " ".join(f"{name}={value}" for name, value in text.items())
    return f"{when:%H:%M:%S}", f"{event['event']}: {text}"


def _recorded(spec: Mapping[str, Any], created: float) -> list[tuple[str, str]]:  # Any: JSON
    started = datetime.fromtimestamp(created).astimezone()
    return [
        ("source", str(spec["source"])),
        ("destination", str(spec["destination"])),
        ("started", f"{started:%Y-%m-%d %H:%M:%S %z}"),
    ]
