"""``dmcopy pause``, ``cancel``, ``wait`` and ``set``: what can be done with a job from outside."""

from __future__ import annotations

import argparse
import json

from dmcopy.cli.common import Commands, Context, seconds
from dmcopy.core.rate import Rate
from dmcopy.errors import DmcopyError, EndedElsewhere, Interrupted, LeftBehind, Refused, UsageError
from dmcopy.jobs import settings
from dmcopy.jobs.control import ask_running
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock, wait_free
from dmcopy.jobs.membership import refuse_member
from dmcopy.jobs.overview import rescue, view_of
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.state import State, is_final
from dmcopy.stack.names import check_job

_PAUSE_SECONDS = 600.0  # a batch on a slow destination takes its time
_CANCEL_SECONDS = 120.0
_SET_SECONDS = 30.0

_SETTINGS = """\
of a job:
  rate=SIZE|auto|none  how much is read a second
with --host:
  rate=SIZE|none       how much all jobs together read a second
  jobs=N|none          how many of those started with --queue run at a time
  keep-jobs=N          how many ended jobs are kept (default: 100)
  keep-days=N          how long they are kept (default: 90)
"""


def add(commands: Commands) -> None:
    """Add the commands to the command line."""
    pause = commands.add_parser(
        "pause",
        help="stop copying for a while; the point in time stays",
        description="Have a running job copy nothing until `dmcopy resume JOB`.  The point in time "
        "stays, and so the\nCOW device goes on filling.  Returns when what was copied is durable.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pause.add_argument("job", metavar="JOB")
    pause.set_defaults(run=run_pause)
    cancel = commands.add_parser(
        "cancel",
        help="give a job up: put everything back",
        description="Give a job up, whether it runs, is paused or was interrupted: the origin gets "
        "its table back,\nand what the job made is removed.  What was written to a block device "
        "stays there.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cancel.add_argument("job", metavar="JOB")
    cancel.set_defaults(run=run_cancel)
    wait = commands.add_parser(
        "wait",
        help="wait for the end of a job",
        description="Wait until a job has ended, and exit with its exit status.",
        allow_abbrev=False,
    )
    wait.add_argument("job", metavar="JOB")
    wait.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="wait no longer (then exit status 1)"
    )
    wait.add_argument("--json", action="store_true", help="print the job's last event")
    wait.set_defaults(run=run_wait)
    change = commands.add_parser(
        "set",
        help="change a job while it runs, or what holds for all jobs",
        description="Change a job, which may be running, paused or interrupted; or, with --host, "
        "what holds for all\njobs of this host together.",
        epilog=_SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    change.add_argument("job", nargs="?", metavar="JOB")
    change.add_argument("--host", action="store_true", help="for all jobs of this host")
    # not nargs="*": argparse would give the first of them to JOB
    change.add_argument("settings", nargs=argparse.REMAINDER, metavar="NAME=VALUE")
    change.set_defaults(run=run_set)


def run_pause(arguments: argparse.Namespace, context: Context) -> int:
    """Pause a running job."""
    host = context.host()
    view = view_of(check_job(arguments.job), host)
    if view.pid is None:
        raise Refused(
            f"job {view.job} does not run, so there is nothing to pause",
            way_out=f"see: dmcopy show {view.job}",
        )
    ask_running(host.places, view.job, "pause", timeout=_PAUSE_SECONDS)
    print(f"{view.job} is paused; go on: dmcopy resume {view.job}")
    return 0


def run_cancel(arguments: argparse.Namespace, context: Context) -> int:
    """Cancel a job in whatever state."""
    host = context.host()
    view = view_of(check_job(arguments.job), host)
    refuse_member(view.record, "cancel")
    if view.pid is not None:
        ask_running(host.places, view.job, "cancel", timeout=_CANCEL_SECONDS)
        if not wait_free(host.places.locks, view.job, _CANCEL_SECONDS):
            raise DmcopyError(f"job {view.job} (pid {view.pid}) does not end")
        view = view_of(view.job, host)
    elif not view.is_dead and not view.is_kept:
        raise Refused(f"job {view.job} has {view.state}", way_out="there is nothing to cancel")
    else:
        result = rescue(view, host, end=State.CANCELLED)
        for line in result.done:
            print(f"{view.job}: {line}")
        if result.left:
            raise LeftBehind(result.left, job=view.job)
        view = view_of(view.job, host)
    print(f"{view.job}: {view.state}")
    return 0


def run_wait(arguments: argparse.Namespace, context: Context) -> int:
    """Wait for a job; exit as it did."""
    host = context.host()
    view = view_of(check_job(arguments.job), host)
    if not wait_free(host.places.locks, view.job, arguments.timeout):
        raise DmcopyError(f"job {view.job} has not ended after {arguments.timeout:g} s")
    view = view_of(view.job, host)
    record = view.record
    if record is None or not (is_final(record.state) or view.is_kept):
        raise Interrupted(
            f"job {view.job} was interrupted; "
            + (f"go on: dmcopy resume {view.job}" if view.can_resume else f"{view.no_way_on}")
        )
    if record.ended is None:  # a job that was killed, and put right by rescue or cancel
        raise Interrupted(f"job {view.job} was given up")
    if arguments.json:
        print(json.dumps(record.ended))
    elif record.ended["error"]:
        raise EndedElsewhere(record.ended["error"], record.ended["exit_status"])
    return int(record.ended["exit_status"])


def run_set(arguments: argparse.Namespace, context: Context) -> int:
    """Change a job or the host."""
    words = list(arguments.settings)
    job: str | None = arguments.job
    if arguments.host and job is not None:  # it was the first of the settings
        words, job = [job, *words], None
    if (job is None) != arguments.host or not words:
        raise UsageError("say dmcopy set JOB NAME=VALUE, or dmcopy set --host NAME=VALUE")
    asked = dict(_setting(word) for word in words)
    if job is None:
        for name, value in asked.items():
            settings.check(name, value)
    host = context.host()
    if job is None:
        with Journal(host.places.journal) as journal:
            for name, value in asked.items():
                settings.change(journal, host.places, name, value)
        return 0
    if asked.keys() != {"rate"}:
        raise UsageError(f"'{words[0]}' cannot be set on a job: rate=SIZE|auto|none can")
    rate = Rate.parse(asked["rate"])
    view = view_of(check_job(job), host)
    if view.pid is not None:
        ask_running(host.places, job, "set", timeout=_SET_SECONDS, rate=str(rate))
        return 0
    if view.record is None or is_final(view.record.state):
        raise Refused(f"job {job} is {view.state}", way_out="there is nothing to be set")
    for one in view.members or (view,):
        if one.record is not None and not is_final(one.record.state):
            _set_rate(one.record, host, rate)
    return 0


def _set_rate(record: Record, host: Host, rate: Rate) -> None:
    with JobLock(host.places.locks, record.name), Journal(host.places.journal) as journal:
        spec = CopySpec.from_json(record.spec).at_rate(rate)
        journal.set_spec(record.name, {**record.spec, **spec.as_json()})


def _setting(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise UsageError(f"'{word}' is no NAME=VALUE")
    return name, value
