"""What the commands do for a group of volumes: ``copy --pair``, and ``resume`` of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from dmcopy.cli.running import Report
from dmcopy.core.events import Ended, Planned
from dmcopy.errors import DmcopyError, PointInTimeLost
from dmcopy.jobs.application import Application
from dmcopy.jobs.group import GroupJob
from dmcopy.jobs.group_account import lines, planned
from dmcopy.jobs.group_check import check_together, check_words
from dmcopy.jobs.group_resume import finish, give_up_group, prepare_group
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.membership import member_name, refuse_taken
from dmcopy.jobs.prepare import Prepared, prepare
from dmcopy.jobs.spec import CopySpec
from dmcopy.kernel.own_code import kept
from dmcopy.kernel.priority import step_back
from dmcopy.stack.hold import Instant
from dmcopy.stack.names import check_job
from dmcopy.stack.together import Part
from dmcopy.units import format_size


def specs_of(spec: CopySpec, pairs: Sequence[tuple[str, str]]) -> list[CopySpec]:
    """Make one volume's spec of each pair; *spec* has the group's name and all options.

    Raises `UsageError` for what does not go with several volumes.
    """
    check_job(spec.name)
    specs = [
        replace(
            spec,
            name=member_name(spec.name, number),
            source=source,
            destination=destination,
            group=spec.name,
        )
        for number, (source, destination) in enumerate(pairs, start=1)
    ]
    check_words(specs)
    return specs


def prepare_all(specs: Sequence[CopySpec], host: Host) -> list[Prepared]:
    """Look at all volumes, and at what they have in common; changes nothing."""
    prepared = [prepare(spec, host, meet=_in_their_own_process) for spec in specs]
    check_together(prepared, host)
    return prepared


def _in_their_own_process(part: Part | None) -> Instant:
    raise AssertionError(f"members begin, each in its process, and not {part} here")


def copy(name: str, specs: Sequence[CopySpec], host: Host, report: Report) -> int:
    """Copy a new group; gives the exit status."""
    prepared = prepare_all(specs, host)
    application = _application(name, prepared, host)
    with Journal(host.places.journal) as journal:
        refuse_taken(name, journal, members=len(specs))
        report(planned(name, prepared, application))
        group = GroupJob(name, prepared, host, journal, report, application=application)
        return _run(group, host, report)


def _application(name: str, prepared: Sequence[Prepared], host: Host) -> Application:
    """Give what goes around the instant, once for all volumes."""
    spec = replace(prepared[0].spec, name=name)
    return Application(spec, [one.source for one in prepared], host)


def plan(name: str, specs: Sequence[CopySpec], host: Host) -> tuple[Planned, list[str]]:
    """Give what copying the group would do, as an event and as lines for a person."""
    prepared = prepare_all(specs, host)
    event = planned(name, prepared, _application(name, prepared, host))
    text = [f"# one begin time for {len(prepared)} volumes:"]
    for one in prepared:
        told = one.planned()
        text.append(f"# {told.source} ({format_size(told.bytes_total)}) -> {told.destination}")
        text.append(f"#   provider: {told.provider} ({told.why})")
        if told.cow is not None:
            text.append(f"#   COW device: {told.cow}")
    text += [f"# hook: {hook}" for hook in event.hooks]
    text += [f"# freeze {point} for the begin time" for point in event.freezes]
    text += [*lines(prepared), "# copy each; undo all of the above, last first"]
    return event, text


def resume(record: Record, host: Host, journal: Journal, report: Report, *, verify: bool) -> int:
    """Go on with a group, with all of it; gives the exit status."""
    try:
        ahead = prepare_group(record, host, journal, verify=verify)
    except PointInTimeLost as exc:
        raise give_up_group(record, host, exc) from exc
    if not ahead.prepared:
        ended = finish(record, host, journal)
        report(ended)
        return ended.exit_status
    group = GroupJob(record.name, ahead.prepared, host, journal, report, over=ahead.over)
    return _run(group, host, report)


def _run(group: GroupJob, host: Host, report: Report) -> int:
    step_back()
    with kept(host.places.code):
        ended: Ended = group.run()
    report.close()
    if ended.error is not None:
        print(f"dmcopy: {ended.error}", file=sys.stderr)
    return ended.exit_status


def record_of(host: Host, job: str) -> Record | None:
    """Give what the journal has of a job; None where there is none, or it cannot be read."""
    if not host.places.journal.exists():
        return None
    try:
        with Journal(host.places.journal, read_only=True) as journal:
            return journal.record(job)
    except DmcopyError:  # who needs it will say so
        return None
