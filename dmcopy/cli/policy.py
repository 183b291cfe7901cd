"""``dmcopy policy``: copies that begin by themselves, when a disk is plugged in or at a time."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from dmcopy.agent import triggers
from dmcopy.agent.calendar import PROGRAM, next_elapse
from dmcopy.agent.plugs import start_unit
from dmcopy.agent.policy import Loaded, Policy, read
from dmcopy.agent.triggers import Action, Appearances, Verdict
from dmcopy.cli.common import Commands, Context
from dmcopy.cli.running import Report, detached, report_for
from dmcopy.errors import DmcopyError, Interrupted, Refused, UsageError
from dmcopy.jobs.host import Host
from dmcopy.jobs.lock import JobLock
from dmcopy.kernel.sysfs import Sysfs

_FAILURE_SECONDS = 60.0  # for the command of on_failure
# seconds between two looks whether another device's unit has taken the work
_PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0)

_REFUSED = "{}~refused"  # beside the names of policies, which have no such sign

_DESCRIPTION = """\
A policy is a file in /etc/dmcopy/policies.d that says what is copied, where to, and when:
docs/policies.rst.
"""


def add(commands: Commands) -> None:
    """Add the command and its verbs to the command line."""
    parser = commands.add_parser(
        "policy",
        help="copies that begin by themselves: when a disk is plugged in, or at a time",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    check = _verb(verbs, "check", "name every fault of every file; change nothing", run_check)
    check.description = (
        "Read all policies and name every fault, each with its file and word.  "
        "Exit status 2 when there is one."
    )
    one = _verb(verbs, "list", "say which policies there are", run_list)
    one.add_argument("--json", action="store_true", help="one JSON object a policy, on stdout")
    go = _verb(verbs, "run", "run a policy now", run_run)
    go.description = (
        "Run a policy now, whatever it says of when.  An unfinished job of it is gone on with, "
        "else a new one begins."
    )
    go.add_argument("name", metavar="NAME")
    go.add_argument(
        "--detach", action="store_true", help="return as soon as the begin time is fixed"
    )
    go.add_argument("--json", action="store_true", help="events as JSON, one a line, on stdout")
    show = _verb(verbs, "simulate", "say what would happen if a device appeared now", run_simulate)
    show.description = (
        "Say for each policy what it would do if DEVICE appeared now, and why, or why not.  "
        "Changes nothing."
    )
    show.add_argument("device", metavar="DEVICE", help="its path in /dev, or in /sys")
    show.add_argument("--json", action="store_true", help="one JSON object a policy, on stdout")
    plug = _verb(verbs, "plug", "a device has appeared (what systemd runs)", run_plug)
    plug.description = (
        "Run the policy that is for a device which has just appeared.  For one that no policy "
        "is for nothing is done, which is no failure."
    )
    plug.add_argument("device", metavar="SYSPATH", help="its path in /sys, or in /dev")
    after = _verb(verbs, "unplugged", "the unit of plug ends (what systemd runs)", run_unplugged)
    after.description = (
        "Put right what plug left, as dmcopy rescue does, unless it ended well (EXIT_STATUS, as "
        "systemd sets it); and have it started again for a device that is back already."
    )
    after.add_argument("unit", metavar="UNIT")
    after.add_argument("device", metavar="SYSPATH")


def _verb(
    verbs: Commands,
    name: str,
    text: str,
    run: Callable[[argparse.Namespace, Context], int],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


# what only looks


def run_check(_arguments: argparse.Namespace, context: Context) -> int:
    """Name every fault; 2 when there is one."""
    host = context.host(need_root=False)
    loaded = read(host.places)
    faults = [*loaded.faults]
    for policy in loaded.policies:
        faults += _faults_of(policy, host)
    for fault in faults:
        print(fault, file=sys.stderr)
    right = len(loaded.policies) - len({fault.partition(": ")[0] for fault in faults} & {
        str(policy.path) for policy in loaded.policies
    })  # fmt: skip
    print(f"{right} policies are right, {len(faults)} faults, in {host.places.policies}")
    return UsageError.exit_status if faults else 0


def _faults_of(policy: Policy, host: Host) -> list[str]:
    """Give what the command line, and systemd, say against a policy that reads well."""
    faults = []
    try:
        _parsed(policy.words("check", lambda place: f"/dev/disk/{place.kind}"))
    except DmcopyError as exc:
        faults.append(f"{policy.path}: {exc}")
    if policy.calendar is not None and host.run.find(PROGRAM):
        try:
            if next_elapse(policy.calendar, time.time(), host.run) is None:
                faults.append(f"{policy.path}: when: calendar '{policy.calendar}' never comes")
        except UsageError as exc:
            faults.append(f"{policy.path}: when: {exc}")
    return faults


def _parsed(words: list[str]) -> argparse.Namespace:
    """Read words of the command line, as if they had been typed; raises `UsageError`."""
    from dmcopy.cli.main import parser  # it imports the commands, of which this is one

    return parser(words[:1]).parse_args(words)


def run_list(arguments: argparse.Namespace, context: Context) -> int:
    """List the policies."""
    host = context.host(need_root=False)
    loaded = _loaded(host)
    for policy in loaded.policies:
        if arguments.json:
            print(json.dumps(policy.as_json()))
            continue
        when = filter(None, ["on plug" if policy.on_plug else None, policy.calendar])
        pairs = ", ".join(f"{pair.source} -> {pair.destination}" for pair in policy.pairs)
        print(f"{policy.name}: {pairs} ({', '.join(when) or 'when it is run'})")
        if policy.options:
            print(f"    {shlex.join(policy.options)}")
    return UsageError.exit_status if loaded.faults else 0


def run_simulate(arguments: argparse.Namespace, context: Context) -> int:
    """Say what would happen."""
    host = context.host()
    devno = _devno(arguments.device, host.sysfs)
    if devno is None:
        raise UsageError(f"there is no block device {arguments.device}")
    loaded = _loaded(host)
    verdicts = triggers.on_plug(loaded.policies, devno, host)
    for verdict in verdicts:
        print(json.dumps(verdict.as_json()) if arguments.json else verdict)
    if not arguments.json and not any(verdict.acts for verdict in verdicts):
        print(f"nothing would be done about {arguments.device}")
    return 0


def _loaded(host: Host) -> Loaded:
    """Read the policies; what is wrong with others is said, and keeps none from its work."""
    loaded = read(host.places)
    for fault in loaded.faults:
        print(f"dmcopy: {fault}", file=sys.stderr)
    return loaded


def _devno(path: str, sysfs: Sysfs) -> str | None:
    """Give the number of a block device by its path in /dev or /sys; None when it is not there."""
    if path.startswith("/sys/"):
        with suppress(OSError), open(os.path.join(path, "dev"), encoding="ascii") as file:
            devno = file.read().strip()
            # a character device may have the same number
            if os.path.samefile(path, sysfs.folder(devno)):
                return devno
        return None
    try:
        return sysfs.devno_of(path)
    except OSError:
        return None


# what acts


def run_run(arguments: argparse.Namespace, context: Context) -> int:
    """Run a policy now."""
    host = context.host()
    policies = _loaded(host).policies
    policy = next((one for one in policies if one.name == arguments.name), None)
    if policy is None:
        known = ", ".join(one.name for one in policies) or "none"
        raise UsageError(f"there is no policy {arguments.name} (there are: {known})")
    return _act(policy, host, context, arguments, appeared=None)


def run_plug(arguments: argparse.Namespace, context: Context) -> int:
    """Run the policy that is for a device which has just appeared, if there is one."""
    host = context.host()
    arguments.detach, arguments.json = False, False
    devno = _devno(arguments.device, host.sysfs)
    if devno is None:
        print(f"{arguments.device} is gone, or no block device: nothing is done")
        return 0
    policies = _loaded(host).policies
    appearances = Appearances(host.places, host.sysfs)
    try:
        verdicts = triggers.on_plug(policies, devno, host)
        appearance = appearances.of(devno)
        for verdict in verdicts:
            print(verdict, flush=True)
        is_handed_over = _hand_over(policies, verdicts, devno, host)
    except OSError:
        print(f"{arguments.device} has just gone: nothing is done")
        return 0
    for policy, verdict in zip(policies, verdicts, strict=True):
        if verdict.at is not None:
            continue
        if verdict.acts:
            # once for each appearance, however often udev tells of it
            appearances.serve(policy.name, appearance)
            with _stays_ready(host, devno):
                return _act(policy, host, context, arguments, appeared=devno)
        if verdict.action is Action.REFUSED:
            appearances.serve(_REFUSED.format(policy.name), appearance)
            raise _refused(policy, verdict, host)
    if not is_handed_over:
        print(f"no policy acts on {arguments.device}: nothing is done")
    return 0


def _hand_over(
    policies: Sequence[Policy], verdicts: Sequence[Verdict], devno: str, host: Host
) -> bool:
    """Leave to its own unit what is about another device; tell whether there was anything.

    A unit is bound to its device, so the one that copies must be that of what is written.  One
    that is just about to end, with nothing done, is not started again by systemd: so it is looked
    whether the work was taken.  Raises OSError when a device is gone.
    """
    appearances = Appearances(host.places, host.sysfs)
    is_due = False
    for pause in _PAUSES:
        others = {
            verdict.at
            for verdict in verdicts
            if verdict.at is not None and _is_left(verdict, verdict.at, appearances)
        }
        if not others:
            return is_due
        is_due = True
        for other in others:
            print(f"{host.sysfs.node(other)}: {start_unit(other, host)}", flush=True)
        time.sleep(pause)
        verdicts = triggers.on_plug(policies, devno, host)
    raise DmcopyError("the unit that was started does nothing about it")


def _is_left(verdict: Verdict, devno: str, appearances: Appearances) -> bool:
    """Tell whether the unit of the device *devno* has something to do, or a refusal to tell."""
    refused = _REFUSED.format(verdict.policy)
    return verdict.acts or (
        verdict.action is Action.REFUSED
        and not appearances.is_served(refused, appearances.of(devno))
    )


def run_unplugged(arguments: argparse.Namespace, context: Context) -> int:
    """Rescue, and have systemd start the unit again where the disk came back while it ended.

    systemd starts what a device wants when the device becomes ready, and drops that wish while the
    unit is being stopped (JOB_FAIL, src/core/device.c): a link that flaps would be lost.
    """
    if os.environ.get("EXIT_STATUS") == "0":
        return 0
    host = context.host()
    try:
        rescue = _parsed(["rescue"])
        rescue.run(rescue, context)
    finally:
        # it did not even begin to look, perhaps, and nobody was told what is done about the device
        is_killed = os.environ.get("EXIT_CODE") == "killed"
        is_stopped = is_killed or os.environ.get("EXIT_STATUS") == str(Interrupted.exit_status)
        if is_stopped and _devno(arguments.device, host.sysfs) is not None:
            print(f"{arguments.device} is back: {arguments.unit} is started again")
            host.run.run("systemctl", "start", "--no-block", "--", arguments.unit)
    return 0


def _refused(policy: Policy, verdict: Verdict, host: Host) -> Refused:
    """Give the error for what is in the way of a policy, and tell its ``on_failure`` of it."""
    error = Refused(f"policy {policy.name}: {verdict.why}")
    _tell_failure(policy, verdict.job, error, host)
    return error


@contextmanager
def _stays_ready(host: Host, devno: str) -> Iterator[None]:
    """Have systemd go on taking the device for ready while it is hidden from all others.

    Else the first event would stop the unit that we are, which is bound to the device.
    """
    mark = host.places.runtime / "plug" / devno
    mark.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def _act(
    policy: Policy,
    host: Host,
    context: Context,
    arguments: argparse.Namespace,
    *,
    appeared: str | None,
) -> int:
    """Do what is to be done now; the policy is locked meanwhile, and looked at under the lock."""
    with ExitStack() as stack:
        try:
            stack.enter_context(JobLock(triggers.locks(host.places), policy.name))
        except Refused:
            verdict = triggers.decide(policy, host, appeared=appeared)
            print(verdict)
            return 0 if appeared is not None else Refused.exit_status
        verdict = triggers.decide(policy, host, appeared=appeared, is_locked=True)
        if verdict.action is Action.NOTHING and appeared is not None:
            print(verdict)
            return 0
        if not verdict.acts:
            raise _refused(policy, verdict, host)
        assert verdict.job is not None
        triggers.serve(policy, host)
        if verdict.gives_up is not None:
            cancel = _parsed(["cancel", verdict.gives_up])
            cancel.run(cancel, context)
        parsed = _parsed(list(verdict.words))
        parsed.json = arguments.json
        work = _work(policy, verdict, parsed, context)
        if arguments.detach:
            return detached(verdict.job, context, as_json=arguments.json, work=work)
        with report_for(as_json=arguments.json) as report:
            return work(report)


def _work(
    policy: Policy, verdict: Verdict, parsed: argparse.Namespace, context: Context
) -> Callable[[Report], int]:
    """Give what does the work, and runs the policy's command when it fails."""
    from dmcopy.cli import copy, resume

    def work(report: Report) -> int:
        host = context.host()
        assert verdict.job is not None
        try:
            if verdict.action is Action.RESUME:
                status = resume.resume_job(parsed, host, report)
            else:
                copy.check_volumes(parsed)
                status = copy.copy_job(verdict.job, parsed, context, report)
        except DmcopyError as exc:
            if not isinstance(exc, Interrupted):
                _tell_failure(policy, verdict.job, exc, host)
            raise
        if status not in (0, Interrupted.exit_status):
            said = triggers.failure_of(verdict.job, host) or f"exit status {status}"
            _tell_failure(policy, verdict.job, DmcopyError(said), host)
        return status

    return work


def _tell_failure(policy: Policy, job: str | None, error: DmcopyError, host: Host) -> None:
    """Run the command of ``on_failure``; what it does wrong is said, and changes nothing."""
    if not policy.on_failure:
        return
    words = (
        "env",
        f"DMCOPY_POLICY={policy.name}",
        f"DMCOPY_JOB={job or ''}",
        f"DMCOPY_ERROR={error}",
        *policy.on_failure,
    )
    try:
        host.run.run(*words, timeout=_FAILURE_SECONDS)
    except DmcopyError as exc:
        print(f"dmcopy: on_failure of policy {policy.name}: {exc}", file=sys.stderr)
