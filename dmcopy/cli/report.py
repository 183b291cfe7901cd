"""``dmcopy report``: one job as a file for a browser."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from pathlib import Path
from typing import Final

from dmcopy.cli.common import Commands, Context
from dmcopy.cli.status import state_text
from dmcopy.core.history import History
from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.membership import refuse_group
from dmcopy.jobs.overview import JobView, view_of
from dmcopy.jobs.state import State
from dmcopy.kernel.whole_file import write_whole
from dmcopy.report.page import MARK, Subject, page

_BEGINNING: Final = 200  # bytes of a file in which our mark is


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "report",
        help="show how a copy went, as one HTML file",
        description="Write one HTML file about a job, whether it runs, is interrupted or has "
        "ended: progress, COW device, forecast, holds, the application's write latency, and a "
        "map of the image.  The file needs nothing else and fetches nothing.  An earlier report "
        "is replaced, any other file is not.",
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB")
    parser.add_argument(
        "--output", metavar="FILE", help="where to (default: dmcopy-JOB.html); -: stdout"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Write the report; prints where it is."""
    host = context.host()
    view = view_of(arguments.job, host)
    refuse_group(view.record, "report")
    text = page(subject_of(view, host, made=time.time()))
    if arguments.output == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())  # as the page says, whatever the terminal takes
        return 0
    path = Path(arguments.output or f"dmcopy-{arguments.job}.html")
    write(path, text)
    print(path)
    return 0


def subject_of(view: JobView, host: Host, *, made: float) -> Subject:
    """Put together what the journal has of the job; *made* is the time now."""
    record = view.record
    if record is None:  # only the kernel knows it
        return Subject(
            job=view.job, state=state_text(view), tone=_tone(view), made=made, way_on=_way_on(view)
        )
    with Journal(host.places.journal, read_only=True) as journal:
        kept = journal.history(view.job)
    return Subject(
        job=view.job,
        state=state_text(view),
        tone=_tone(view),
        made=made,
        source=str(record.spec["source"]),
        destination=str(record.spec["destination"]),
        created=record.created,
        lost=record.lost,
        way_on=_way_on(view),
        begun=record.begun,
        progress=record.progress,
        # what an earlier session ended with is not the end of one that runs
        ended=record.ended if view.pid is None else None,
        history=History.from_json(kept),
        log=view.log,
    )


def _tone(view: JobView) -> str:
    record = view.record
    if view.pid is not None:
        return "busy"
    if record is not None and (record.lost is not None or record.state is State.FAILED):
        return "bad"
    if view.is_dead:
        return "wait" if view.can_resume else "bad"
    if record is None or record.ended is None or record.state is State.CANCELLED:
        return "wait"
    return "wait" if record.ended.get("error") else "good"


def _way_on(view: JobView) -> str:
    if not view.is_dead:
        return ""
    return f"dmcopy {'resume' if view.can_resume else 'rescue'} {view.job}"


def write(path: Path, text: str) -> None:
    """Put *text* at *path*, whole or not at all; raises `Refused` for a file that is not ours.

    A device is never replaced, nor written to: we are root, and a slip of the pen is enough.
    """
    target = Path(os.path.realpath(path))
    try:
        _refuse_foreign(target, path)
        write_whole(target, text.encode(), is_durable=False)
    except OSError as exc:
        raise DmcopyError(f"cannot write {path}: {exc.strerror}") from exc


def _refuse_foreign(target: Path, path: Path) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode):
        with target.open("rb") as file:
            if f"<!-- {MARK} -->".encode() in file.read(_BEGINNING):
                return
    raise Refused(
        f"{path} exists, and is no report of ours",
        way_out="name another file with --output, or - for stdout",
    )
