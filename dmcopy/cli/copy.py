"""``dmcopy copy`` and ``dmcopy plan``: the main job, and what it would do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from dmcopy.agent import client
from dmcopy.cli import group
from dmcopy.cli.common import (
    Commands,
    Context,
    default_name,
    load_targets,
    parsed,
    seconds,
    size,
)
from dmcopy.cli.running import (
    QUEUE_HELP,
    Report,
    by_agent,
    detached,
    in_turn,
    report_for,
    run_job,
)
from dmcopy.core.events import Planned
from dmcopy.core.order import POLICIES, Policy
from dmcopy.core.rate import Rate
from dmcopy.errors import UsageError
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.membership import refuse_taken
from dmcopy.jobs.overview import JobView, overview
from dmcopy.jobs.prepare import prepare
from dmcopy.jobs.sameness import Difference, differences
from dmcopy.jobs.spec import (
    DEFAULT_BATCH,
    DEFAULT_CHUNK,
    DEFAULT_HOLD_LIMIT,
    DEFAULT_HOOK_TIMEOUT,
    DEFAULT_SEGMENT,
    DIGESTS,
    FREEZES,
    GATES,
    MD_RESYNC,
    ON_FULL,
    VIAS,
    CopySpec,
)
from dmcopy.report.jsonlines import JsonLines
from dmcopy.stack.cow import COW_FORMS, COW_HELP, COW_MAX_HELP, CowSpec
from dmcopy.stack.names import check_job
from dmcopy.units import format_size

_EXAMPLES = """\
examples:
  dmcopy copy /dev/mapper/data /dev/disk/by-id/wwn-0x5000c500a1b2c3d4 --verify
  dmcopy copy /dev/mapper/data image:/backup/data.img --cow 20g
  dmcopy copy /dev/mapper/data /dev/sdx --cow /var/tmp/cow:50g --json
  dmcopy copy --pair /dev/mapper/data /dev/sdx --pair /dev/mapper/wal /dev/sdy

A destination is KIND:REST, kinds block and image; a bare path that is a block device is
block:, any other path is image:.
"""


def add(commands: Commands) -> None:
    """Add the two commands to the command line."""
    copy = commands.add_parser(
        "copy",
        help="copy a device as it is now, while it is being written",
        description="Copy SOURCE, as it is at one instant (the begin time), to DESTINATION,\n"
        "while applications go on writing to it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _arguments(copy)
    copy.add_argument("--dry-run", action="store_true", help="show the plan and change nothing")
    copy.add_argument(
        "--detach",
        action="store_true",
        help="return as soon as the begin time is fixed; the copy goes on in the background",
    )
    copy.add_argument("--queue", action="store_true", help=QUEUE_HELP)
    copy.add_argument(
        "--no-agent",
        dest="agent",
        action="store_false",
        help="with --detach: start the process here, also where an agent runs (dmcopy agent)",
    )
    copy.set_defaults(run=run)
    plan = commands.add_parser(
        "plan",
        help="show what copy would do; change nothing",
        description="Check everything that copy checks, and show what it would do as lines that\n"
        "can be pasted.  Changes nothing.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _arguments(plan)
    plan.add_argument(
        "--on-record",
        action="store_true",
        help="say what became of the job of that --name, and whether what is asked for now is the "
        "same copy (same devices, same result), instead of checking a new one",
    )
    plan.set_defaults(run=run, dry_run=True, detach=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="block device to copy")
    parser.add_argument("destination", nargs="?", metavar="DESTINATION", help="where the copy goes")
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        default=[],
        metavar=("SOURCE", "DESTINATION"),
        help="in place of SOURCE DESTINATION, once a volume: a group with one begin time for all; "
        "every option holds for each volume",
    )
    parser.add_argument("--name", help="name of the job (default: source and time)")
    parser.add_argument(
        "--cow",
        type=parsed(CowSpec.parse),
        default=CowSpec(),
        metavar=COW_FORMS,
        help=COW_HELP,
    )
    parser.add_argument("--cow-max", type=size, metavar="SIZE", help=COW_MAX_HELP)
    parser.add_argument(
        "--on-full",
        choices=ON_FULL,
        default=ON_FULL[0],
        help="when the COW device is about to be full and cannot grow: let the snapshot go, and "
        "with it the copy, or hold writers, each write at most the hold limit, while what they "
        "wait for is copied first (default: %(default)s)",
    )
    parser.add_argument(
        "--no-retire",
        dest="retire",
        action="store_false",
        help="keep what is copied in the snapshot: without this, writes to it are saved no more, "
        "and pass at full speed (--on-full hold retires all the same, when the COW device is "
        "nearly full)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the snapshot when everything is copied, until dmcopy cancel JOB; nothing is "
        "retired then",
    )
    parser.add_argument(
        "--order",
        choices=POLICIES,
        default=POLICIES[0],
        help="what is copied first: the image from its beginning; what is written the most (hot); "
        "or what fills the COW device the most (cow) (default: %(default)s; while it runs: dmcopy "
        "order JOB)",
    )
    parser.add_argument(
        "--gate",
        choices=GATES,
        default=GATES[0],
        help="segment: writes to the segment that is being copied wait until it is done, a quarter "
        "of the hold limit at most, and cost the COW device nothing (default: %(default)s)",
    )
    parser.add_argument(
        "--via",
        choices=VIAS,
        default=VIAS[0],
        help="how the begin time is fixed: md-split makes the spare of a RAID1 a member and splits "
        "that off, for an array that is mounted as it is; it is made the spare again at the end "
        "(default: %(default)s: by what the source is)",
    )
    parser.add_argument(
        "--md-resync",
        choices=MD_RESYNC,
        default=MD_RESYNC[0],
        help="what is done about a resync, recovery, check or repair of an md array under the "
        "source: wait for its end before the begin time; pause it, and start it again at the end, "
        "however that comes; or ignore it, for md gives right data meanwhile.  auto waits for the "
        "resync and repair of a mirror (RAID1, RAID10), whose members may differ until it is done, "
        "and ignores all else (default: %(default)s)",
    )
    parser.add_argument(
        "--hold-start",
        action="store_true",
        help="fix the begin time, then copy nothing until dmcopy resume JOB, or dmcopy order JOB "
        "--only ...",
    )
    parser.add_argument(
        "--chunk",
        type=size,
        default=DEFAULT_CHUNK,
        metavar="SIZE",
        help=f"unit of the snapshot (default: {format_size(DEFAULT_CHUNK)})",
    )
    parser.add_argument(
        "--segment",
        type=size,
        default=DEFAULT_SEGMENT,
        metavar="SIZE",
        help=f"unit of the copy (default: {format_size(DEFAULT_SEGMENT)})",
    )
    parser.add_argument(
        "--batch",
        type=size,
        default=DEFAULT_BATCH,
        metavar="SIZE",
        help="make the copy durable, and retire it, after this much, or after 5 seconds (less "
        "where that costs little), whichever comes first: what an interruption costs at most "
        f"(default: {format_size(DEFAULT_BATCH)})",
    )
    parser.add_argument(
        "--rate",
        type=parsed(Rate.parse),
        default=Rate(),
        metavar="SIZE|auto|none",
        help="read at most this much a second; auto: back off when the source's writes become "
        "slow (default: none; while it runs: dmcopy set JOB rate=SIZE)",
    )
    parser.add_argument(
        "--digest",
        choices=DIGESTS,
        default=DIGESTS[0],
        help="digest of the image (default: %(default)s)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read the destination back and compare the digest"
    )
    parser.add_argument(
        "--hold-limit",
        type=seconds,
        default=DEFAULT_HOLD_LIMIT,
        metavar="SECONDS",
        help="longest time that a write may be held (default: %(default)g)",
    )
    parser.add_argument(
        "--freeze",
        choices=FREEZES,
        default=FREEZES[0],
        help="file systems on the source, and on devices above it: freeze them for the begin time, "
        "so that they are clean in the copy, or take them as after a power cut (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--hook",
        action="append",
        default=[],
        metavar="COMMAND",
        help="run this around the begin time, too; a path, or one that comes with dmcopy "
        "(postgresql, mariadb); may be given again",
    )
    parser.add_argument(
        "--no-hooks",
        dest="hook_directory",
        action="store_false",
        help="do not run those in /etc/dmcopy/hooks.d, only those of --hook",
    )
    parser.add_argument(
        "--hook-timeout",
        type=seconds,
        default=DEFAULT_HOOK_TIMEOUT,
        metavar="SECONDS",
        help="longest time for each side of a hook (default: %(default)g)",
    )
    parser.add_argument(
        "--overwrite-signature",
        action="store_true",
        help="write onto a device that carries a file system, partition table, PV or md signature",
    )
    parser.add_argument(
        "--new-identity",
        action="store_true",
        help="when everything is copied (and verified), give the copy UUIDs, labels and names of "
        "its own, so that it can be used beside its source (later: dmcopy identity DESTINATION)",
    )
    parser.add_argument("--json", action="store_true", help="events as JSON, one a line, on stdout")


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Copy, or show the plan."""
    if getattr(arguments, "on_record", False):
        return _on_record(arguments, context)
    check_volumes(arguments)
    name = arguments.name or default_name((arguments.pair or [[arguments.source]])[0][0])
    if arguments.detach and not arguments.dry_run:
        if arguments.agent:
            words = [word for word in arguments.words if word not in ("--detach", "--json")]
            status = by_agent(
                context, lambda places: client.start(places, words), as_json=arguments.json
            )
            if status is not None:
                return status
        return detached(
            name,
            context,
            as_json=arguments.json,
            work=lambda report: copy_job(name, arguments, context, report),
        )
    if arguments.dry_run:
        if arguments.pair:
            _show_group(name, arguments, context)
        else:
            _show(prepare(_spec(name, arguments), _host(context)).planned(), as_json=arguments.json)
        return 0
    with report_for(as_json=arguments.json) as report:
        return copy_job(name, arguments, context, report)


def copy_job(name: str, arguments: argparse.Namespace, context: Context, report: Report) -> int:
    """Copy as *name*, here and now; gives the exit status."""
    host = _host(context)
    with in_turn(name, host, report, queue=arguments.queue):
        return _copy_now(name, arguments, host, report)


def _copy_now(name: str, arguments: argparse.Namespace, host: Host, report: Report) -> int:
    if arguments.pair:
        specs = group.specs_of(_spec(name, arguments), arguments.pair)
        return group.copy(name, specs, host, report)
    prepared = prepare(_spec(name, arguments), host)
    with Journal(host.places.journal) as journal:
        refuse_taken(name, journal)
        report(prepared.planned())
        return run_job(prepared, host, journal, report)


def check_volumes(arguments: argparse.Namespace) -> None:
    """Raise `UsageError` unless it is clear what is copied: one volume, or several by --pair."""
    alone = (arguments.source, arguments.destination)
    if arguments.pair and alone != (None, None):
        raise UsageError(f"{alone[0]}: with --pair every volume needs one")
    if not arguments.pair and None in alone:
        raise UsageError("say SOURCE, DESTINATION; or --pair, for each of several volumes")
    if arguments.pair and arguments.new_identity:
        raise UsageError(
            "--new-identity is for one volume; after a copy of several: dmcopy identity "
            "DESTINATION --new, for each"
        )


def _on_record(arguments: argparse.Namespace, context: Context) -> int:
    """Say what the journal has of a job, and whether it is what is asked for."""
    if arguments.name is None:
        raise UsageError("--on-record needs the --name of the job")
    host = context.host()
    check_job(arguments.name)
    view = next(iter(overview(host, only=arguments.name)), None)
    asked: list[CopySpec] = []
    if arguments.pair or arguments.source is not None:
        check_volumes(arguments)
        spec = _spec(arguments.name, arguments)
        asked = group.specs_of(spec, arguments.pair) if arguments.pair else [spec]
    found = differences(view, asked, host) if view is not None and asked else []
    if arguments.json:
        print(json.dumps(_on_record_json(arguments.name, view, found, asked=bool(asked))))
    elif view is None:
        print(f"there is no job {arguments.name}")
    else:
        print(f"job {view.job}: {view.state}{', the same copy' if asked and not found else ''}")
        for one in found:
            print(f"another {one.word}: on record {one.recorded}, asked for {one.asked}")
    return 0


def _on_record_json(
    name: str, view: JobView | None, found: Sequence[Difference], *, asked: bool
) -> dict[str, object]:
    return {
        "event": "on_record",
        "job": name,
        "same": not found if view is not None and asked else None,
        "differs": [one.as_json() for one in found],
        "status": view.as_json() if view is not None else None,
        "volumes": [one.as_json() for one in view.members] if view is not None else [],
    }


def _show_group(name: str, arguments: argparse.Namespace, context: Context) -> None:
    specs = group.specs_of(_spec(name, arguments), arguments.pair)
    event, text = group.plan(name, specs, _host(context))
    if arguments.json:
        JsonLines(sys.stdout)(event)
    else:
        print("\n".join(text))


def _host(context: Context) -> Host:
    host = context.host()
    if host.dm is not None:
        load_targets(host)
    return host


def _spec(name: str, arguments: argparse.Namespace) -> CopySpec:
    return CopySpec(
        name=name,
        source=arguments.source or "",  # of a group: each pair has its own
        destination=arguments.destination or "",
        cow=replace(arguments.cow, most=arguments.cow_max),
        on_full=arguments.on_full,
        retire=arguments.retire,
        keep=arguments.keep,
        order=Policy(arguments.order),
        gate=arguments.gate,
        via=arguments.via,
        md_resync=arguments.md_resync,
        hold_start=arguments.hold_start,
        chunk=arguments.chunk,
        segment=arguments.segment,
        batch=arguments.batch,
        digest=arguments.digest,
        verify=arguments.verify,
        rate=arguments.rate,
        overwrite_signature=arguments.overwrite_signature,
        hold_limit=arguments.hold_limit,
        freeze=arguments.freeze,
        hooks=tuple(arguments.hook),
        hook_directory=arguments.hook_directory,
        hook_timeout=arguments.hook_timeout,
        new_identity=arguments.new_identity,
    )


def _show(planned: Planned, *, as_json: bool) -> None:
    """Print a plan: shell lines that can be pasted, with comments that explain them."""
    if as_json:
        JsonLines(sys.stdout)(planned)
        return
    lines = [
        f"# {planned.source} ({format_size(planned.bytes_total)}) -> {planned.destination}",
        f"# provider: {planned.provider} ({planned.why})",
    ]
    lines += [f"# hook: {hook} before, and after" for hook in planned.hooks]
    lines += [f"# frozen for the begin time: {point}" for point in planned.freezes]
    if planned.cow is not None:
        lines.append(f"# COW device: {planned.cow}")
    lines += [
        *planned.steps,
        f"# copy in segments of {format_size(planned.segment_bytes)}, order: {planned.order}, "
        f"gate: {planned.gate}",
        f"# retire: {'yes' if planned.retire else 'no'} ({planned.retire_why})",
        "# undo all of the above, last first",
    ]
    if planned.new_identity:
        lines.append("# give the copy UUIDs, labels and names of its own")
    print("\n".join(lines))
