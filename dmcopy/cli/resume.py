"""``dmcopy resume``: go on with a job that was paused or interrupted."""

from __future__ import annotations

import argparse

from dmcopy.cli.common import Commands, Context, load_targets
from dmcopy.cli.running import Report, detached, report_for, run_job
from dmcopy.errors import PointInTimeLost
from dmcopy.jobs.control import ask
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import holder
from dmcopy.jobs.overview import give_up
from dmcopy.jobs.resume import prepare_resume
from dmcopy.stack.names import check_job

_ANSWER_SECONDS = 60.0


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "resume",
        help="go on with a job that was paused or interrupted",
        description="Go on with a job that was paused (dmcopy pause) or interrupted (Ctrl-C, kill, "
        "crash), as of\nthe begin time that it had.  What is durable at the destination is not "
        "copied again.\n\nIf a write could have been missed since the begin time, the job ends "
        "with exit status 4\nand the reason, and everything is put back.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB")
    parser.add_argument(
        "--verify", action="store_true", help="read the destination back, even if copy was not"
        " asked to"
    )  # fmt: skip
    parser.add_argument(
        "--detach", action="store_true", help="return as soon as it goes on, in the background"
    )
    parser.add_argument("--json", action="store_true", help="events as JSON, one a line, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Resume."""
    check_job(arguments.job)
    host = context.host()
    if holder(host.places.locks, arguments.job) is not None:
        ask(host.places.desks, arguments.job, "resume", timeout=_ANSWER_SECONDS)
        if not arguments.json:
            print(f"{arguments.job} goes on")
        return 0
    if arguments.detach:
        return detached(
            arguments.job,
            context,
            as_json=arguments.json,
            work=lambda report: _resume(arguments, context.host(), report),
        )
    with report_for(as_json=arguments.json) as report:
        return _resume(arguments, host, report)


def _resume(arguments: argparse.Namespace, host: Host, report: Report) -> int:
    if host.dm is not None:
        load_targets(host)
    with Journal(host.places.journal) as journal:
        try:
            prepared = prepare_resume(arguments.job, host, journal, verify=arguments.verify)
        except PointInTimeLost as exc:
            raise give_up(arguments.job, host, journal, exc) from exc
        return run_job(prepared, host, journal, report)
