"""``dmcopy resume``: go on with a job that was paused or interrupted."""

from __future__ import annotations

import argparse
import json
import sys

from dmcopy.agent import client, triggers
from dmcopy.agent.launch import Launcher, unit_looks_in
from dmcopy.cli import group
from dmcopy.cli.common import Commands, Context, load_targets
from dmcopy.cli.group import record_of
from dmcopy.cli.running import (
    QUEUE_HELP,
    Report,
    by_agent,
    detached,
    in_turn,
    report_for,
    run_job,
)
from dmcopy.errors import DmcopyError, PointInTimeLost, Refused, UsageError
from dmcopy.jobs.control import ask_running
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import holder
from dmcopy.jobs.membership import members_of, refuse_member
from dmcopy.jobs.overview import JobView, give_up, overview
from dmcopy.jobs.resume import prepare_resume
from dmcopy.jobs.state import is_final
from dmcopy.jobs.twins import mend
from dmcopy.kernel.command import Commander, launch_subprocess
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
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("job", nargs="?", metavar="JOB")
    which.add_argument(
        "--all",
        action="store_true",
        help="every job that was interrupted and can be gone on with now, each in the background; "
        "those that somebody paused stay so.  At boot: dmcopy-resume.service",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read the destination back, even if copy was not"
        " asked to"
    )  # fmt: skip
    parser.add_argument(
        "--detach", action="store_true", help="return as soon as it goes on, in the background"
    )
    parser.add_argument(
        "--no-agent",
        dest="agent",
        action="store_false",
        help="with --detach: start the process here, also where an agent runs (dmcopy agent)",
    )
    parser.add_argument("--queue", action="store_true", help=QUEUE_HELP)
    parser.add_argument("--json", action="store_true", help="events as JSON, one a line, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Resume."""
    if arguments.all:
        return _resume_all(arguments, context.host())
    check_job(arguments.job)
    host = context.host()
    record = record_of(host, arguments.job)
    refuse_member(record, "resume")
    if (pid := holder(host.places.locks, arguments.job)) is not None:
        if arguments.verify and record is not None and not record.spec.get("verify"):
            raise Refused(
                f"process {pid} has job {arguments.job}, and was not asked to verify",
                way_out=f"kill -INT {pid}, which interrupts it, and then this; or without --verify",
            )
        ask_running(host.places, arguments.job, "resume", timeout=_ANSWER_SECONDS)
        if not arguments.json:
            print(f"{arguments.job} goes on")
        return 0
    if record is None:  # or it could not be read, and then that is said
        _check_known(arguments.job, host)
    if arguments.detach:
        if arguments.agent and not arguments.verify:
            status = by_agent(
                context,
                lambda places: client.resume(places, arguments.job),
                as_json=arguments.json,
            )
            if status is not None:
                return status
        return detached(
            arguments.job,
            context,
            as_json=arguments.json,
            work=lambda report: _resume(arguments, context.host(), report),
        )
    with report_for(as_json=arguments.json) as report:
        return _resume(arguments, host, report)


def _check_known(job: str, host: Host) -> None:
    """Raise `UsageError` for a job that there is not, before anything is made for it."""
    path = host.places.journal
    if path.exists():
        with Journal(path, read_only=True) as journal:
            if journal.record(job) is not None:
                return
    raise UsageError(f"there is no job {job} (see: dmcopy list)")


def _resume(arguments: argparse.Namespace, host: Host, report: Report) -> int:
    """Go on with a job, and keep its policy from doing so as well."""
    with triggers.on_behalf(arguments.job, host):
        return resume_job(arguments, host, report)


def _resume_all(arguments: argparse.Namespace, host: Host) -> int:
    """Go on with what was interrupted; gives the exit status of the first that could not."""
    status = 0
    launcher = Launcher(Commander(launch_subprocess), asked=unit_looks_in(host.places))
    for view in overview(host):
        if not is_to_go_on(view):
            continue
        if view.not_now is not None:
            print(f"{view.job}: not now: {view.not_now}", file=sys.stderr)
            continue
        try:
            said = launcher.resume(view.job, verify=arguments.verify, queue=arguments.queue)
        except DmcopyError as exc:
            if exc.exit_status == Refused.exit_status and is_taken(view.job, host):
                # not among the events
                stream = sys.stderr if arguments.json else sys.stdout
                print(f"{view.job} goes on already: {exc}", file=stream)
                continue
            print(f"{view.job}: {exc}", file=sys.stderr)
            status = status or exc.exit_status
            continue
        if arguments.json:
            print(*map(json.dumps, said.events), sep="\n")
        else:
            print(f"{view.job} goes on")
    return status


def is_to_go_on(view: JobView) -> bool:
    """Tell whether a job was interrupted, and not paused by somebody; of a group the whole."""
    return view.can_resume and view.group is None and not view.was_paused


def is_taken(job: str, host: Host) -> bool:
    """Tell whether another works on a job, or has just ended it: at a boot its disk's unit."""
    record = record_of(host, job)
    return triggers.is_at_work(job, host) or (record is not None and is_final(record.state))


def resume_job(arguments: argparse.Namespace, host: Host, report: Report) -> int:
    """Go on with a job, here and now; gives the exit status.

    Whoever calls it works for the job's policy, if it has one (`triggers.on_behalf`).
    """
    if host.dm is not None:
        load_targets(host)
    with (
        in_turn(arguments.job, host, report, queue=arguments.queue),
        Journal(host.places.journal) as journal,
    ):
        record = journal.record(arguments.job)
        if record is not None and members_of(record):
            return group.resume(record, host, journal, report, verify=arguments.verify)
        mend(host, arguments.job, record)
        try:
            prepared = prepare_resume(arguments.job, host, journal, verify=arguments.verify)
        except PointInTimeLost as exc:
            raise give_up(arguments.job, host, journal, exc) from exc
        return run_job(prepared, host, journal, report)
