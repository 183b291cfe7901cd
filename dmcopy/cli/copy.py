"""``dmcopy copy`` and ``dmcopy plan``: the main job, and what it would do."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from dmcopy.cli.common import (
    Commands,
    Context,
    default_name,
    load_targets,
    parsed,
    seconds,
    size,
)
from dmcopy.cli.running import Report, detached, report_for, run_job
from dmcopy.core.events import Planned
from dmcopy.core.order import POLICIES, Policy
from dmcopy.core.rate import Rate
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import prepare
from dmcopy.jobs.spec import (
    DEFAULT_BATCH,
    DEFAULT_CHUNK,
    DEFAULT_HOLD_LIMIT,
    DEFAULT_SEGMENT,
    DIGESTS,
    GATES,
    ON_FULL,
    CopySpec,
)
from dmcopy.report.jsonlines import JsonLines
from dmcopy.stack.cow import COW_FORMS, COW_HELP, COW_MAX_HELP, CowSpec
from dmcopy.units import format_size

_EXAMPLES = """\
examples:
  dmcopy copy /dev/mapper/data /dev/disk/by-id/wwn-0x5000c500a1b2c3d4 --verify
  dmcopy copy /dev/mapper/data image:/backup/data.img --cow 20g
  dmcopy copy /dev/mapper/data /dev/sdx --cow /var/tmp/cow:50g --json

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
    plan.set_defaults(run=run, dry_run=True, detach=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="block device to copy")
    parser.add_argument("destination", metavar="DESTINATION", help="where the copy goes")
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
        "--overwrite-signature",
        action="store_true",
        help="write onto a device that carries a file system, partition table, PV or md signature",
    )
    parser.add_argument("--json", action="store_true", help="events as JSON, one a line, on stdout")


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Copy, or show the plan."""
    name = arguments.name or default_name(arguments.source)
    if arguments.detach and not arguments.dry_run:
        return detached(
            name,
            context,
            as_json=arguments.json,
            work=lambda report: _copy(name, arguments, context, report),
        )
    if arguments.dry_run:
        _show(prepare(_spec(name, arguments), _host(context)).planned(), as_json=arguments.json)
        return 0
    with report_for(as_json=arguments.json) as report:
        return _copy(name, arguments, context, report)


def _copy(name: str, arguments: argparse.Namespace, context: Context, report: Report) -> int:
    host = _host(context)
    prepared = prepare(_spec(name, arguments), host)
    with Journal(host.places.journal) as journal:
        report(prepared.planned())
        return run_job(prepared, host, journal, report)


def _host(context: Context) -> Host:
    host = context.host()
    if host.dm is not None:
        load_targets(host)
    return host


def _spec(name: str, arguments: argparse.Namespace) -> CopySpec:
    return CopySpec(
        name=name,
        source=arguments.source,
        destination=arguments.destination,
        cow=replace(arguments.cow, most=arguments.cow_max),
        on_full=arguments.on_full,
        retire=arguments.retire,
        keep=arguments.keep,
        order=Policy(arguments.order),
        gate=arguments.gate,
        hold_start=arguments.hold_start,
        chunk=arguments.chunk,
        segment=arguments.segment,
        batch=arguments.batch,
        digest=arguments.digest,
        verify=arguments.verify,
        rate=arguments.rate,
        overwrite_signature=arguments.overwrite_signature,
        hold_limit=arguments.hold_limit,
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
    if planned.cow is not None:
        lines.append(f"# COW device: {planned.cow}")
    lines += [
        *planned.steps,
        f"# copy in segments of {format_size(planned.segment_bytes)}, order: {planned.order}, "
        f"gate: {planned.gate}",
        f"# retire: {'yes' if planned.retire else 'no'} ({planned.retire_why})",
        "# undo all of the above, last first",
    ]
    print("\n".join(lines))
