"""``dmcopy status``: which jobs there are, and how far they are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from dmcopy.cli.common import Commands, Context, consoles
from dmcopy.errors import UsageError
from dmcopy.jobs.overview import JobView, overview
from dmcopy.report.text import duration
from dmcopy.units import format_size


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "status",
        help="show jobs, and how far they are",
        description="Show the jobs of this host: running, ended, and dead ones that left "
        "something behind.  Changes nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help="show only this job, in full")
    parser.add_argument("--json", action="store_true", help="one JSON object a job, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Show all jobs, or one."""
    views = overview(context.host())
    if arguments.job is not None:
        views = [view for view in views if view.job == arguments.job]
        if not views:
            raise UsageError(f"there is no job {arguments.job}")
    if arguments.json:
        for view in views:
            print(json.dumps(view.as_json()))
        return 0
    out, _ = consoles()
    if not views:
        out.print("no jobs")
    elif arguments.job is not None:
        out.print(_whole(views[0]))
    else:
        out.print(_list(views))
    return 0


def _state(view: JobView) -> str:
    if view.is_dead:
        return "dead"
    return view.state if view.pid is None else f"{view.state} (pid {view.pid})"


def _done(view: JobView) -> str:
    record = view.record
    if record is None:
        return ""
    if record.ended is not None:
        return f"in {duration(record.ended['seconds'])}"
    if record.progress is None:
        return ""
    done, total = record.progress["bytes_done"], record.progress["bytes_total"]
    return f"{record.progress['phase']} {done / total:.0%}"


def _list(views: list[JobView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("JOB", "STATE", "DONE", "SOURCE", "DESTINATION"):
        table.add_column(heading, overflow="fold")
    for view in views:
        spec = view.record.spec if view.record else {}
        row = (view.job, _state(view), _done(view), spec.get("source"), spec.get("destination"))
        table.add_row(*(Text(cell or "-") for cell in row))
    return table


def _whole(view: JobView) -> Table:
    rows: list[tuple[str, str]] = [("job", view.job), ("state", _state(view))]
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
    rows += [("there is", line) for line in view.remains]
    if view.is_dead:
        rows.append(("mend", f"dmcopy rescue {view.job}"))
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value, overflow="fold"))
    return table


def _recorded(spec: Mapping[str, Any], created: float) -> list[tuple[str, str]]:  # Any: JSON
    started = datetime.fromtimestamp(created).astimezone()
    return [
        ("source", str(spec["source"])),
        ("destination", str(spec["destination"])),
        ("started", f"{started:%Y-%m-%d %H:%M:%S %z}"),
    ]
