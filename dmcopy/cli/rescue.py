"""``dmcopy rescue``: put right what a job left that was killed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from dmcopy.cli.common import Commands, Context, open_cookies
from dmcopy.errors import LeftBehind, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.membership import refuse_member
from dmcopy.jobs.overview import JobView, Rescued, let_writes_go, overview, rescue, view_of
from dmcopy.jobs.state import is_final
from dmcopy.jobs.twins import sweep
from dmcopy.jobs.wraps import remove_half_made
from dmcopy.stack.charge import mend
from dmcopy.stack.md_pause import left_paused, start_left_again


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "rescue",
        help="put right what a killed job left behind",
        description="Give every origin its table back, start a paused resync again, and remove "
        "the devices, loop devices, files and udev cookies of jobs that died.  Jobs that can be "
        "resumed are kept, unless JOB names one; running jobs are not touched.  Safe to run at "
        "any time, and again.",
        allow_abbrev=False,
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help="only this job (default: all)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what is there to be mended; change nothing"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a job, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Rescue one job or all; raises `LeftBehind` when something stays."""
    host = context.host()
    if arguments.job is not None:
        views = [_dead_or_ended(view_of(arguments.job, host))]
    else:
        views = overview(host)
    names = [arguments.job, *(member.job for view in views[:1] for member in view.members)]
    names = names if arguments.job is not None else [None]
    dead = _without_members([view for view in views if view.is_dead])
    # what the journal may yet say can be resumed is taken apart by name only
    kept = [v for v in dead if v.can_resume or v.is_unread] if arguments.job is None else []
    for view in kept:
        if not arguments.dry_run:
            let_writes_go(view, host)
        _keep(view, as_json=arguments.json)
    dead = [view for view in dead if view not in kept]
    if arguments.dry_run:
        for view in dead:
            result = Rescued(job=view.job, done=(), left=view.remains)
            _show(result, as_json=arguments.json, dry_run=True)
        paused = _paused(names, host, as_json=arguments.json, dry_run=True)
        owed = _mend(arguments, host)
        _nothing([*dead, *kept, *paused, *owed], as_json=arguments.json)
        return 0
    left: list[str] = []
    paused = _paused(names, host, as_json=arguments.json)
    for result in paused:
        left += result.left
    for view in dead:
        result = rescue(view, host)
        _show(result, as_json=arguments.json)
        left += result.left
    owed = _mend(arguments, host)  # now that nothing is suspended any more
    left += [line for result in owed for line in result.left]
    half_made = remove_half_made(host) if arguments.job is None else []
    for line in half_made:
        if not arguments.json:
            print(line)
    if arguments.job is None:
        unfinished = {v.job for v in views if v.record is None or not is_final(v.record.state)}
        for line in sweep(host, unfinished):
            if not arguments.json:
                print(line)
    cookies = open_cookies(host.places).destroy_leftover()
    for cookie in cookies:
        if not arguments.json:
            print(f"destroyed udev cookie {cookie.key:#x} of process {cookie.pid}")
    _nothing([*dead, *kept, *paused, *owed, *half_made, *cookies], as_json=arguments.json)
    if left:
        raise LeftBehind(left, job=arguments.job)
    return 0


def _paused(
    jobs: Sequence[str | None], host: Host, *, as_json: bool, dry_run: bool = False
) -> list[Rescued]:
    """Start again what dead *jobs* paused on md arrays, None for all; resumable ones too."""
    folder = host.places.paused
    if dry_run:
        found: dict[str, tuple[list[str], list[str]]] = {
            name: ([], list(words)) for name, words in left_paused(folder).items()
        }
        found = {name: those for name, those in found.items() if jobs[0] is None or name in jobs}
    else:
        found = {}
        for job in jobs:
            found |= start_left_again(folder, job)
    results = [Rescued(job=n, done=tuple(d), left=tuple(x)) for n, (d, x) in found.items()]
    results = [result for result in results if result.done or result.left]
    for result in results:
        _show(result, as_json=as_json, dry_run=dry_run)
    return results


def _mend(arguments: argparse.Namespace, host: Host) -> list[Rescued]:
    """Thaw, and run the other side of hooks, where the process was killed that owed it."""
    dry_run = arguments.dry_run
    owed = [
        Rescued(job=job, done=tuple(done), left=tuple(left))
        for job, done, left in mend(host.places.keepers, arguments.job, dry_run=dry_run)
    ]
    for result in owed:
        _show(result, as_json=arguments.json, dry_run=dry_run)
    return owed


def _without_members(dead: list[JobView]) -> list[JobView]:
    """Leave out those whose group is there too: they come with it."""
    groups = {view.job for view in dead if view.members and not view.can_resume}
    return [view for view in dead if view.group not in groups]


def _keep(view: JobView, *, as_json: bool) -> None:
    if as_json:
        kept = Rescued(job=view.job, done=(), left=()).as_json() | {"can_resume": view.can_resume}
        print(json.dumps(kept))
        return
    if view.is_unread:
        print(
            f"{view.job}: is kept, because the journal cannot be read; mend that, or take it "
            f"apart: dmcopy rescue {view.job}"
        )
        return
    print(
        f"{view.job}: was interrupted and is kept; go on: dmcopy resume {view.job}; "
        f"give it up: dmcopy cancel {view.job}"
    )


def _dead_or_ended(view: JobView) -> JobView:
    if view.pid is not None:
        raise Refused(
            f"job {view.job} is running (pid {view.pid})",
            way_out=f"stop it first: dmcopy cancel {view.group or view.job}",
        )
    if view.leader is not None:
        refuse_member(view.record, "cancel")
    if view.can_resume:
        refuse_member(view.record, "rescue")
    return view


def _show(result: Rescued, *, as_json: bool, dry_run: bool = False) -> None:
    if as_json:
        print(json.dumps(result.as_json()))
        return
    for line in result.done:
        print(f"{result.job}: {line}")
    for line in result.left:
        print(f"{result.job}: {'there is' if dry_run else 'left:'} {line}")
    if not result.done and not result.left:
        print(f"{result.job}: nothing was left; marked as failed")


def _nothing(found: object, *, as_json: bool) -> None:
    if not found and not as_json:
        print("nothing to rescue")
